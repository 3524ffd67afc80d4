"""A VQGAN that nobody trained, and the run directory of a real, very short training on its codes."""

import os
from pathlib import Path

import filelock
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import dalle_jax
import train_jax
import vqgan_jax
from vqgan_jax import model as vqgan_model


def untrained_vqgan() -> "vqgan_jax.Vqgan":
    """16 x 16 pixels to 4 x 4 codes out of 12."""
    options = vqgan_model.defaults()
    options.update(
        {"channels": 8, "multipliers": (1, 1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4}
    )
    options.quantizer.update({"type": "fsq", "levels": (4, 3)})
    options.z_channels = 8
    module = vqgan_model.build(options)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda x: 3 * np.asarray(x), nn.unbox(variables))  # so that pictures differ in their codes
    return vqgan_jax.Vqgan.assemble(options, variables, "untrained")


def tiny_config(folder: Path) -> ConfigDict:
    """Four updates of a tiny model, with the VQGAN and the data set in `folder`."""
    c = ConfigDict({"task": "dalle_jax.task", "steps": 4, "log_every": 1})
    c.data = {"source": "digits", "batch_size": 8, "data_dir": str(folder / "data")}
    c.vqgan = {"path": str(folder / "vqgan.safetensors")}
    c.codes = {"dir": str(folder / "codes")}
    c.tokenizer = {"vocab_size": 560, "captions": 20}
    c.model = {"text_length": 12, "width": 16, "depth": 2, "heads": 2, "dropout": 0.1}
    c.optim = {"lr": 1e-2}
    c.ema = {"decay": 0.5}
    c.evals = {
        "test": {"type": "likelihood", "batch_size": 128},
        "look": {"type": "samples", "rows": 2, "n": 3},
    }
    return c


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run, its data beside it; the same for all test workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dalle"
    folder.mkdir(exist_ok=True)
    config = tiny_config(folder)
    with filelock.FileLock(folder / "lock"):
        if not (folder / "run").exists():
            (folder / "vqgan.safetensors").unlink(missing_ok=True)
            vqgan_jax.save(untrained_vqgan(), folder / "vqgan.safetensors")
            train_jax.run(config, folder / "unfinished")
            (folder / "unfinished").rename(folder / "run")
    return config, folder / "run"


@pytest.fixture(scope="session")
def trained(tiny) -> dalle_jax.Dalle:
    return dalle_jax.load(tiny[1])
