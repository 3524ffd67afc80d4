"""Rendered scenes with true captions: a data set that is drawn on the spot, and an oracle that reads pictures back.

`scene` says what exists and what is true, `render` draws it, `oracle` reads a picture, and the TFDS builder writes
the splits `train`, `test` and `novel`.
"""

from train_jax.datasets import embedded
from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.scene import LABEL_NAMES

__all__ = ["LABEL_NAMES", "builder", "is_true", "read", "shows"]


def builder(size: str = "64", data_dir: str | None = None):
    """The TFDS builder of scenes at 32, 64 or 128 pixels, its files made if they are not there yet."""
    from train_jax.datasets.shapes.shapes_dataset_builder import Builder

    return embedded.prepared(Builder, size, data_dir)


def is_true(caption: str, record) -> bool:
    """Whether a caption is true of a record's scene; ValueError for a caption of another world."""
    return scenes.is_true(caption, scenes.Scene.from_json(record["scene"]))


def read(image) -> tuple[tuple[str, str], ...]:
    """Colour and shape of each object that the oracle sees in a picture, in the order of their names."""
    from train_jax.datasets.shapes import oracle

    return tuple(sorted((o.colour, o.shape) for o in oracle.read(image)))


def shows(image, caption: str) -> bool:
    """Whether a caption is true of what the oracle sees in a picture; ValueError for a caption of another world."""
    from train_jax.datasets.shapes import oracle

    return scenes.is_true(caption, scenes.Scene(oracle.read(image)))
