"""Rendered scenes with true captions: a generated data set, and an oracle that recognises scenes in images.

    shapes/32                 20,000 scenes in `train`; also 64 and 128 pixels
    shapes/32/train=100000    these and more; the other splits are the same

`scene` defines scenes, captions and their truth, `render` draws scenes, `oracle` recognises scenes in images, and the TFDS
builder writes the splits `train`, `test` and `novel`.
"""

import functools

from train_jax.data.preparation import prepare_builder
from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.scene import LABEL_NAMES

__all__ = ["LABEL_NAMES", "builder", "is_true", "judge", "licences", "read", "truth"]


def builder(variant: str = "64", data_dir: str | None = None):
    """Returns the TFDS builder of a variant, `SIZE[/train=N]`, with prepared files. Raises ValueError for another one."""
    from train_jax.datasets.shapes.shapes_dataset_builder import Builder, parse

    config = parse(variant)
    return prepare_builder(functools.partial(Builder, config=config, data_dir=data_dir))


def licences(variant: str, split: str) -> list[str]:
    """Returns who made the data, and their licence, a sentence each."""
    return ["Scenes rendered by multimodal-jax, without content of others"]


def truth(builder) -> dict:
    """Returns the fields of a Source that tell the truth about records and images."""
    return {"label_names": LABEL_NAMES, "is_true": is_true, "read": read, "judge": judge}


def is_true(caption: str, record) -> bool:
    """Returns whether a caption is true of a record's scene. Raises ValueError for a caption outside the grammar."""
    return scenes.is_true(caption, scenes.Scene.from_json(record["scene"]))


def read(image) -> tuple[tuple[str, str], ...]:
    """Returns colour and shape of each object that the oracle recognises in an image, sorted."""
    from train_jax.datasets.shapes import oracle

    return tuple(sorted((o.colour, o.shape) for o in oracle.read(image)))


def judge(image, caption: str) -> dict[str, bool]:
    """Compares a caption with the scene that the oracle recognises in an image; see `scene.judge`.

    Raises ValueError for a caption outside the grammar.
    """
    from train_jax.datasets.shapes import oracle

    return scenes.judge(caption, scenes.Scene(oracle.read(image)))
