"""The run directory of a real, very short training of a tiny VQGAN, for the tests of this folder."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import filelock
import pytest
from ml_collections import ConfigDict

import train_jax
import vqgan_jax
from train_jax.datasets import shapes
from train_jax.datasets.shapes import shapes_dataset_builder


def tiny_config(data_dir: str | Path) -> ConfigDict:
    """Four updates of a tiny model on the small data set in `data_dir`."""
    c = ConfigDict({"task": "vqgan_jax.task", "steps": 4, "log_every": 1})
    c.data = {"source": "shapes/32", "batch_size": 8, "data_dir": str(data_dir)}
    c.model = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "resolution": 16, "attention": (8,), "groups": 4}
    c.model.z_channels = 8
    c.model.quantizer = {"type": "ema", "size": 16, "dim": 4}
    c.codebook = {"start": "kmeans", "revive": 2}
    c.discriminator = {"channels": 8, "layers": 2, "norm": "batch"}
    c.loss = {"disc_start": 1, "disc_warmup": 1, "disc_ramp": 2, "lecam": 0.01}
    c.optim = {"lr": 1e-3, "args": {"b1": 0.5}}
    c.ema = {"decay": 0.5, "players": ("generator",)}
    c.checkpoint = {"every": 2}
    c.evals = {"test": {"type": "reconstruction", "batch_size": 16}, "oracle": {"type": "reading", "most": 10}}
    return c


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run, its data set beside it; the same for all test workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    config = tiny_config(shared / "vqgan-data")
    with filelock.FileLock(shared / "vqgan.lock"):
        if not (shared / "vqgan-run").exists():
            counts = {"train": 48, "test": 24, "novel": 8}
            with mock.patch.object(shapes_dataset_builder, "EXAMPLES", counts), contextlib.chdir(shared):
                shapes.builder("32", data_dir=str(shared / "vqgan-data"))
            train_jax.run(config, shared / "vqgan-unfinished")
            (shared / "vqgan-unfinished").rename(shared / "vqgan-run")
    return config, shared / "vqgan-run"


@pytest.fixture(scope="session")
def trained(tiny) -> vqgan_jax.Vqgan:
    return vqgan_jax.load(tiny[1])
