"""One tiny model, as parts and as the run directory of a real, short training, for all tests of this folder."""

import json

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from clip_jax import model as model_lib
from clip_jax.clip import Clip
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 220), "yellow": (240, 200, 30)}
SHAPES = ("circle", "square", "triangle")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
MODEL = {
    "embed_dim": 16,
    "image": {"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {"context_length": 12, "width": 16, "depth": 1, "heads": 2},
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
    options = model_lib.defaults()
    options.update(MODEL | changes)
    module = model_lib.build(options, tokenizer.vocab_size, tokenizer.eos_id)
    size = MODEL["image"]["size"]
    images, ids = np.zeros((1, size, size, 3), np.float32), tokenizer.encode(CAPTIONS[:1])
    params = jax.jit(module.init)(jax.random.key(seed), images, ids)["params"]
    params = jax.tree.map(lambda x: getattr(x, "value", x), params, is_leaf=lambda x: hasattr(x, "names"))
    return Clip.assemble(module, params, tokenizer, Preprocess(size), f"untrained, seed {seed}")


@pytest.fixture(scope="session")
def clip() -> Clip:
    return assemble()


@pytest.fixture(scope="session")
def other_clip() -> Clip:
    """The same model with other weights."""
    return assemble(seed=1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of twelve pictures with captions beside them."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for caption in CAPTIONS:
        name = caption.replace(" ", "-") + ".png"
        draw(caption).save(folder / name)
        rows.append(json.dumps({"file": name, "caption": caption}))
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n")
    return folder
