"""Reconstruction of a picture from its codes."""

from pathlib import Path

import numpy as np
from PIL import Image

from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.tab import Picture, Tab, Values, options, parse, positional
from train_jax.data.images import decode
from vqgan_jax import cli
from vqgan_jax.metrics import psnr


def _make_words(values: Values, picture: str, folder: str) -> list[str]:
    return ["vqgan-jax", "reconstruct", *options(model=values["vqgan"], folder=folder), *positional(picture)]


def make_words(values: Values) -> list[str]:
    """Makes the command line of `vqgan-jax reconstruct`."""
    return _make_words(values, Path(values["picture"]).name, "pictures")


def run(models: Models, values: Values, job: Job) -> Result:
    """Encodes and decodes a picture by `vqgan-jax reconstruct`."""
    vq, picture = models.open("vqgan", values["vqgan"]), values["picture"]
    folder = job.folder / "pictures"
    cli.reconstruct(lambda: vq, parse(cli.make_parser(), _make_words(values, picture, str(folder))[1:]))
    [file] = folder.glob("*.png")
    original = job.folder / "original.png"
    seen = vq.preprocess([picture])
    Image.fromarray(seen[0]).save(original)
    decibels = psnr(np.asarray(decode(file))[None] / 255, seen / 255)[0]
    side = vq.size // vq.factor
    text = f"{vq.size} x {vq.size} pixels -> {side} x {side} codes out of {vq.num_codes:,}; {decibels:.1f} dB"
    return Result([(original, "what the VQGAN sees"), (file, "from its codes")], text=text)


TAB = Tab(
    "Reconstruct",
    "Encodes a picture as codes, and decodes these.",
    ("vqgan",),
    {"picture": Picture("Picture")},
    "Reconstruct",
    make_words,
    run,
)
