"""Checkpoints in run directories of `train-jax`."""

from pathlib import Path

import jax
import numpy as np

from train_jax import run_directory
from train_jax.compute import Compute
from vqgan_jax import averaging
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors


def open_directory(path: Path, step: int | None = None) -> Checkpoint | None:
    """Opens a checkpoint of a run, with averaged weights if the run has them; returns None for other directories.

    `step` selects the checkpoint; None opens the newest readable checkpoint.
    """
    config = run_directory.open_config(path, "vqgan_jax.task", "a VQGAN")
    if config is None:
        return None

    def read() -> tuple[dict, str]:
        params, extra, name = run_directory.load_weights(path, step)
        return jax.tree.map(np.asarray, averaging.inference_variables(params, extra)), name

    with convert_errors(path):
        compute = Compute.parse(config["compute"], "compute")
        return Checkpoint(name=str(path), format="run directory", model=config["model"], read=read, compute=compute)
