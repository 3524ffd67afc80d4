"""The run directory of a very short training on the codes of an untrained VQGAN."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

import dalle_jax
import vqgan_jax
from tests.shared_run import train_once


def tiny_config(folder: Path) -> ConfigDict:
    """Four updates of a tiny model, with the VQGAN and the data set in `folder`."""
    c = ConfigDict({"task": "dalle_jax.task", "steps": 4, "log_every": 1})
    c.data = {"source": "digits", "batch_size": 8, "data_dir": str(folder / "data")}
    c.vqgan = {"path": str(folder / "vqgan.safetensors")}
    c.codes = {"dir": str(folder / "codes")}
    c.tokenizer = {"vocab_size": 560, "captions": 20}
    c.model = {"text_length": 12, "width": 16, "depth": 1, "heads": 2}
    c.optim = {"lr": 1e-2}
    c.ema = {"decay": 0.5}
    c.evals = {
        "test": {"type": "likelihood", "batch_size": 128},
        "look": {"type": "samples", "rows": 2, "n": 3},
    }
    return c


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, untrained_vqgan) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run, its data beside it; the same for all test workers."""

    def save_vqgan(folder: Path) -> None:
        (folder / "vqgan.safetensors").unlink(missing_ok=True)
        vqgan_jax.save(untrained_vqgan, folder / "vqgan.safetensors")

    return train_once(tmp_path_factory, "dalle", tiny_config, save_vqgan)


@pytest.fixture(scope="session")
def trained(tiny) -> dalle_jax.Dalle:
    return dalle_jax.load(tiny[1])
