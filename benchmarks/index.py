"""Measures build time, size and query time of a search index of 100,000 synthetic images.

    python -m benchmarks.index [--images 100000]

Images have 64 pixels and both towers have one narrow layer, so that the time of the model is negligible compared with
reading, decoding, storing and searching.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.command import main, positive
from benchmarks.results import Row
from benchmarks.timing import rate_row, size_row, time_row
from clip_jax import model
from clip_jax.clip import Clip
from clip_jax.options import CLIPOptions
from clip_jax.search import Index, build, search
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer

DIM = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=positive, default=100_000)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    options = CLIPOptions.defaults()
    options.embed_dim = DIM
    options.image.update({"size": 64, "patch": 32, "width": 64, "depth": 1, "heads": 1})
    options.text.update({"width": 64, "depth": 1, "heads": 1})
    tokenizer = Tokenizer.train(["a picture of something"], 600)
    module = model.build(options, tokenizer.vocab_size, tokenizer.eos_id)
    pixels, ids = jnp.zeros((1, 64, 64, 3)), jnp.asarray(tokenizer.encode(["x"]))
    variables = jax.tree.map(np.asarray, jax.jit(lambda key: _init_variables(module, key, pixels, ids))(jax.random.key(0)))
    clip = Clip.assemble(module, variables, tokenizer, Preprocess(64), "a small model")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_images(root / "pictures", arguments.images)
        for half in (False, True):
            settings = {"images": arguments.images, "precision": "float16" if half else "float32"}
            out = root / f"index-{half}"
            make = functools.partial(build, clip, root / "pictures", out, half=half, progress=False)
            yield rate_row("build", [_measure_seconds(make)], arguments.images, "images/s", settings)
            yield Row("build again, nothing new", _measure_seconds(make), "s", settings)
            yield size_row("size", sum(file.stat().st_size for file in out.iterdir()), settings)
            index = Index.open(out)
            search(index, clip, text="something")  # copies the index to the device
            times = [_measure_seconds(lambda i=index, n=n: search(i, clip, text=f"picture {n}")) for n in range(30)]
            yield time_row("query", times, settings)


def _init_variables(module, key, pixels, ids):
    import flax.linen as nn

    return nn.unbox(module.init(key, pixels, ids))


def _write_images(folder: Path, count: int) -> None:
    """Writes distinct images of 10 x 10 random blocks."""
    rng = np.random.default_rng(0)
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir(parents=True)
        blocks = Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8))
        blocks.resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number // 1000:03d}" / f"{number}.jpg")


def _measure_seconds(function) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(rows, add_arguments)
