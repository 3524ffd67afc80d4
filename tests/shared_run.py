"""Short trainings that are done once for all test workers."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import filelock
import jax
import pytest
from ml_collections import ConfigDict

import train_jax
from train_jax import sharding
from train_jax.datasets import shapes
from train_jax.datasets.shapes import shapes_dataset_builder


def train_once(
    factory: pytest.TempPathFactory,
    name: str,
    make_config: Callable[[Path], ConfigDict],
    make_data: Callable[[Path], None] = lambda folder: None,
) -> tuple[ConfigDict, Path]:
    """Trains a config in a folder that all test workers share, unless one of them has done it.

    Returns the config, `make_config(folder)`, and the run directory.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    config = make_config(folder)
    with filelock.FileLock(folder / "lock"):
        if not (folder / "run").exists():
            make_data(folder)
            train_jax.run(config, folder / "unfinished")
            (folder / "unfinished").rename(folder / "run")
    return config, folder / "run"


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Runs train on the first device alone, which costs a fraction of eight fake ones on a few cores."""
    make_mesh = sharding.make_mesh
    with mock.patch.object(sharding, "make_mesh", lambda sizes, devices=None: make_mesh(sizes, jax.devices()[:1])):
        yield


def make_shapes(folder: Path, counts: Mapping[str, int]) -> None:
    """Prepares the data set `shapes/32` in `folder/data` with so many examples of each split."""
    with mock.patch.object(shapes_dataset_builder, "EXAMPLES", dict(counts)), contextlib.chdir(folder):
        shapes.builder("32", data_dir=str(folder / "data"))
