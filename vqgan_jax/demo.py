"""Trains a small VQGAN, writes a grid of reconstructions of held-out images, and evaluates the model.

    python -m vqgan_jax.demo [--data shapes|emoji] --workdir runs/demo

Writes to the working directory: `vqgan/` (the run), `reconstructions.png`, and a section of `index.html`. A second call
resumes the run.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

import train_jax
from train_jax import command, page
from train_jax import config as config_lib
from train_jax.data import images, sources
from train_jax.pictures import image_grid
from vqgan_jax.vqgan import Vqgan, load

COLUMNS = 12
ENLARGED = 3


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m vqgan_jax.demo` and returns its exit code; see `train_jax.command.run_demo`."""
    return command.run_demo(argv, "vqgan_jax.demo", __doc__.splitlines()[0], "vqgan", run)


def run(demo: ModuleType, config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains a VQGAN by `config`, writes the image grid and the page, and returns the metrics of the last evaluation."""
    started = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    results = train_jax.run(config, workdir / "vqgan").last_evaluations("psnr", "ssim", "usage", "same")
    vq = load(workdir / "vqgan")
    test_images = []
    for split, count in demo.RECONSTRUCTED.items():
        source = sources.from_config(config_lib.fill(config).data, split=split)
        test_images += [images.decode(source[i]["image"]) for i in range(min(count, len(source)))]
    sheet = workdir / "reconstructions.png"
    draw_reconstructions(vq, test_images).save(sheet)
    table = "\n".join(f"{name:18} {value:8.3f}" for name, value in results.items())
    side = vq.size // vq.factor
    text = f"pixels {vq.size} x {vq.size} -> {side} x {side} codes out of {vq.num_codes}\n{table}"
    parts = [page.heading(f"VQGAN on {demo.TITLE}", 1), page.block(text)]
    splits = " and ".join(demo.RECONSTRUCTED)
    parts += [page.heading(f"Images of {splits}, each above its reconstruction", 2), page.image(sheet)]
    index = page.add_part(workdir, "2-vqgan", "\n".join([*parts, page.note(demo.CREDIT)]))
    print(f"\n{text}\n\nimage: {sheet}; page: {index}")
    print(f"try:     vqgan-jax reconstruct photo.png --model {workdir / 'vqgan'} --out sheet.png")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return results


def draw_reconstructions(vq: Vqgan, test_images: Sequence) -> Image.Image:
    """Draws an enlarged grid of images, each above its reconstruction."""
    originals = vq.preprocess(test_images)
    reconstructions = np.round(255 * vq.reconstruct(originals)).astype(np.uint8)
    rows = []
    for start in range(0, len(originals), COLUMNS):
        rows += [list(originals[start : start + COLUMNS]), list(reconstructions[start : start + COLUMNS])]
    sheet = Image.fromarray(image_grid(rows))
    return sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.NEAREST)


if __name__ == "__main__":
    sys.exit(main())
