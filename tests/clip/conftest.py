"""Tiny models, assembled and from a short training run, and a small task on a folder of captioned images."""

import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from clip_jax import model as model_lib
from clip_jax import task as clip_task
from clip_jax.clip import Clip, load
from clip_jax.options import CLIPCompute, CLIPOptions
from tests.shared_run import make_shapes, train_once
from tests.trees import set_options
from train_jax import config as config_lib
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 220), "yellow": (240, 200, 30)}
SHAPES = ("circle", "square", "triangle")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
MODEL = {
    "embed_dim": 16,
    "image": {"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {"context_length": 32, "width": 16, "depth": 1, "heads": 2},
}


def draw(caption: str, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """Draws a picture of a caption such as "a red circle"."""
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
    """Assembles an untrained model; the seed determines its weights."""
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
    """The function `assemble`."""
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
    """`random_variables(init, *arguments)`: random variables with the shapes of `init`, which is not compiled."""

    def draw(init, *arguments):
        rng = np.random.default_rng(0)

        def draw_one(path, x):
            mean, deviation = DRAWN.get(path[-1].key, (0, 0.25))
            return jnp.asarray(mean + deviation * rng.standard_normal(x.shape), x.dtype)

        return jax.tree_util.tree_map_with_path(draw_one, nn.unbox(jax.eval_shape(init, *arguments)))

    return draw


# A task so small that compiling it takes a second; blocks are unrolled, since a scan takes longer to trace.
SMALL = {
    "task": "clip_jax.task",
    "steps": 2,
    "model": {
        "embed_dim": 8,
        "image": {"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2},
        "text": {"context_length": 10, "width": 16, "depth": 1, "heads": 2},
    },
    "compute": {"scan": False},
    "tokenizer": {"vocab_size": 600},
}
PAIR_CAPTIONS = ["one red kite", "two blue kites above the sea", "a long story " * 5]
NEGATIVES = ["one blue kite", "", "a short story " * 5]  # one is left out


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A folder of five images, dark on the left and light on the right, with the same three captions each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for index in range(5):
        pixels = np.zeros((20, 40, 3), np.uint8) + np.uint8(20 * index)
        pixels[:, 20:] = 230
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(json.dumps({"file": f"{index}.png", "captions": PAIR_CAPTIONS}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def resolve(pairs):
    """`resolve(model__embed_dim=8, ...) -> config`: the resolved config of a small task on the folder `pairs`."""

    def resolve(**changes) -> ConfigDict:
        config = ConfigDict(SMALL | {"data": {"source": f"folder:{pairs}", "batch_size": 8}})
        set_options(config, {path.replace("__", "."): value for path, value in changes.items()})
        return config_lib.resolve(config)

    return resolve


@pytest.fixture
def make_task(resolve):
    """`make_task(**changes) -> Task`, of `resolve(**changes)`."""
    return lambda **changes: clip_task.make(resolve(**changes), None)


@pytest.fixture
def record(pairs):
    """`record(index) -> one record of the folder`."""

    def read(index: int = 0, captions: list[str] = PAIR_CAPTIONS) -> dict:
        image = (pairs / f"{index}.png").read_bytes()
        return {"image": image, "captions": captions, "negatives": NEGATIVES, "id": str(index)}

    return read


@pytest.fixture
def batch(record):
    """`batch(task, count) -> a batch of so many examples`, in which many captions are equal."""

    def make(task, count: int = 8) -> dict:
        rows = [task.example(record(index % 5), np.random.default_rng(index)) for index in range(count)]
        return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}

    return make


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def drawn():
    """The function `draw`."""
    return draw


def tiny_config(data_dir: str | Path) -> ConfigDict:
    """The config of three updates of a tiny model on the small data set in `data_dir`."""
    return ConfigDict(
        {
            "task": "clip_jax.task",
            "steps": 3,
            "log_every": 1,
            "data": {"source": "shapes/32", "batch_size": 16, "data_dir": str(data_dir)},
            "model": MODEL,
            "compute": {"scan": False},  # compiles sooner
            "tokenizer": {"vocab_size": 600},
            "ema": {"decay": 0.5},
            "checkpoint": {"every": 2},
            "evals": {"test": {"type": "zero_shot", "templates": ("a {}",), "batch_size": 40}},
        }
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run, shared by all test workers."""
    counts = {"train": 64, "test": 40, "novel": 16}
    return train_once(
        tmp_path_factory, "clip", lambda folder: tiny_config(folder / "data"), lambda folder: make_shapes(folder, counts)
    )


@pytest.fixture(scope="session")
def trained(tiny) -> Clip:
    return load(tiny[1])
