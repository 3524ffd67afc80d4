"""Rendered scenes with true captions: a generated data set, and an oracle that recognises scenes in images.

`scene` says what exists and what is true, `render` draws it, `oracle` reads a picture, and the TFDS builder writes
the splits `train`, `test` and `novel`.
"""

from train_jax.datasets import embedded
from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.scene import LABEL_NAMES

__all__ = ["LABEL_NAMES", "builder", "is_true", "read", "shows"]


def builder(size: str = "64", data_dir: str | None = None):
    """Returns the TFDS builder of scenes at 32, 64 or 128 pixels, with its files prepared."""
    from train_jax.datasets.shapes.shapes_dataset_builder import Builder

    return embedded.prepared(Builder, size, data_dir)


def is_true(caption: str, record) -> bool:
    """Whether a caption is true of a record's scene; ValueError for a caption that is none of a scene."""
    return scenes.is_true(caption, scenes.Scene.from_json(record["scene"]))


def read(image) -> tuple[tuple[str, str], ...]:
    """Lists colour and shape of each object that the oracle recognises in an image, sorted by name."""
    from train_jax.datasets.shapes import oracle

    return tuple(sorted((o.colour, o.shape) for o in oracle.read(image)))


def shows(image, caption: str) -> bool:
    """Whether a caption is true of the scene that the oracle recognises; ValueError for a caption that is none of a
    scene.
    """
    from train_jax.datasets.shapes import oracle

    return scenes.is_true(caption, scenes.Scene(oracle.read(image)))
