"""Run directories, as `train-jax` writes them."""

import json
from pathlib import Path

import jax
import numpy as np

from train_jax import checkpoint
from train_jax.errors import LoadError
from vqgan_jax.pretrained.checkpoint import Checkpoint


def open_directory(path: Path, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run (or that of `step`), averaged weights where there are any; None if it is no run."""
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise LoadError(f"{file} is not JSON: {error}") from error
    if "task" not in config:
        return None
    if config["task"] != "vqgan_jax.task":
        raise LoadError(f"{path} is a run of {config['task']!r}, not of a VQGAN ('vqgan_jax.task')")

    def read() -> tuple[dict, str]:
        try:
            params, extra, found = checkpoint.load_weights(path / "checkpoints", step)
        except (FileNotFoundError, checkpoint.CheckpointError) as error:
            raise LoadError(str(error)) from error
        variables = {"params": params["generator"], **extra.get("generator", {})}
        return jax.tree.map(np.asarray, variables), f"{path} (step {found})"

    return Checkpoint(name=str(path), kind="run directory", model=config["model"], read=read)
