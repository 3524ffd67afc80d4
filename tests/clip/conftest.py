"""One tiny model, as parts and as the run directory of a real, very short training, for the tests of this folder."""

import contextlib
import math
import os
from pathlib import Path
from unittest import mock

import filelock
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

import train_jax
from clip_jax import model as model_lib
from clip_jax.clip import Clip, load
from clip_jax.options import CLIPCompute, CLIPOptions
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer
from train_jax.datasets import shapes
from train_jax.datasets.shapes import shapes_dataset_builder

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 220), "yellow": (240, 200, 30)}
SHAPES = ("circle", "square", "triangle")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
MODEL = {
    "embed_dim": 16,
    "image": {"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {"context_length": 32, "width": 16, "depth": 1, "heads": 2},
}


def draw(caption: str, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A picture of which the caption ("a red circle") is true."""
    _, colour, shape = caption.split()
    image = Image.new("RGB", size, (245, 245, 240))
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = size[0] * 0.2, size[1] * 0.2, size[0] * 0.8, size[1] * 0.8
    if shape == "circle":
        canvas.ellipse((left, top, right, bottom), COLOURS[colour])
    elif shape == "square":
        canvas.rectangle((left, top, right, bottom), COLOURS[colour])
    else:
        canvas.polygon([(left, bottom), (right, bottom), (size[0] / 2, top)], COLOURS[colour])
    return image


def assemble(seed: int = 0, **changes) -> Clip:
    """An untrained model; another seed gives other weights."""
    tokenizer = Tokenizer.train(CAPTIONS, 600, MODEL["text"]["context_length"])
    options = CLIPOptions.defaults()
    options.update(MODEL | changes)
    module = model_lib.build(options, tokenizer.vocab_size, tokenizer.eos_id, CLIPCompute(scan=False))
    size = MODEL["image"]["size"]
    images, ids = np.zeros((1, size, size, 3), np.float32), tokenizer.encode(CAPTIONS[:1])
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(seed), images, ids))
    return Clip.assemble(module, variables, tokenizer, Preprocess(size), f"untrained, seed {seed}")


@pytest.fixture(scope="session")
def clip() -> Clip:
    return assemble()


@pytest.fixture(scope="session")
def other_clip() -> Clip:
    """The same model with other weights."""
    return assemble(seed=1)


@pytest.fixture(scope="session")
def new_clip():
    """The function that makes such models."""
    return assemble


# Mean and deviation of a parameter by its name; of any other: 0 and 0.25.
DRAWN = {
    "scale": (1, 0.1),
    "bias": (0, 0.1),
    "mean": (0, 0),
    "var": (1, 0),
    "logit_scale": (math.log(1 / 0.07), 0),
    "logit_bias": (-10, 0),
}


@pytest.fixture(scope="session")
def random_variables():
    """`random_variables(init, *arguments)`: variables as `init` would make them, drawn without compiling it."""

    def draw(init, *arguments):
        rng = np.random.default_rng(0)

        def draw_one(path, x):
            mean, deviation = DRAWN.get(path[-1].key, (0, 0.25))
            return jnp.asarray(mean + deviation * rng.standard_normal(x.shape), x.dtype)

        return jax.tree_util.tree_map_with_path(draw_one, nn.unbox(jax.eval_shape(init, *arguments)))

    return draw


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def drawn():
    """The function that draws a caption."""
    return draw


def tiny_config(data_dir: str | Path) -> ConfigDict:
    """Three updates of a tiny model on the small data set in `data_dir`."""
    return ConfigDict(
        {
            "task": "clip_jax.task",
            "steps": 3,
            "log_every": 1,
            "data": {"source": "shapes/32", "batch_size": 16, "data_dir": str(data_dir)},
            "model": MODEL,
            "tokenizer": {"vocab_size": 600},
            "ema": {"decay": 0.5},
            "checkpoint": {"every": 2},
            "evals": {"test": {"type": "zero_shot", "templates": ("a {}",)}},
        }
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run, its data set beside it; the same for all test workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    config = tiny_config(shared / "tiny-data")
    with filelock.FileLock(shared / "tiny.lock"):
        if not (shared / "tiny-run").exists():
            counts = {"train": 64, "test": 40, "novel": 16}
            with mock.patch.object(shapes_dataset_builder, "EXAMPLES", counts), contextlib.chdir(shared):
                shapes.builder("32", data_dir=str(shared / "tiny-data"))
            train_jax.run(config, shared / "tiny-unfinished")
            (shared / "tiny-unfinished").rename(shared / "tiny-run")
    return config, shared / "tiny-run"


@pytest.fixture(scope="session")
def trained(tiny) -> Clip:
    return load(tiny[1])
