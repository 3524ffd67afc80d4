"""Mirrors of a run's metrics in Weights & Biases and trackio, beside `metrics.jsonl` and TensorBoard.

    config.mirrors = ("wandb",)

The project there is the folder of the run directory, or that of the variable WANDB_PROJECT or TRACKIO_PROJECT; everything
else is set as these packages say, such as WANDB_MODE=offline. `mirrors.json` keeps the run's name there, so that a resumed
run goes on in the same one; lines after the restored update, which `metrics.jsonl` replaces, occur twice there.
"""

import importlib
import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from train_jax import paths
from train_jax.errors import ConfigError, UserError
from train_jax.paths import AnyPath

log = logging.getLogger(__name__)

FILE = "mirrors.json"


def import_packages(names: Sequence[str]) -> list[ModuleType]:
    """Imports the packages of mirrors. Raises ConfigError, which names the package, if one is not installed."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ConfigError(
            f"config.mirrors = {tuple(names)}: {error}; pip install 'multimodal-jax[{','.join(names)}]', or leave them out"
        ) from error


def start(names: Sequence[str], workdir: AnyPath, config: Mapping[str, Any]) -> list["Mirror"]:
    """Starts the mirrors of a run, or continues those that its directory names. Raises UserError if one cannot start."""
    if not names:
        return []
    file = workdir / FILE
    if not file.exists():
        paths.replace_file(file, (json.dumps({"id": secrets.token_hex(4)}) + "\n").encode())
    identity = json.loads(file.read_text())["id"]
    return [Mirror(package, workdir, identity, config) for package in import_packages(names)]


class Mirror:
    """A run of `wandb` or `trackio`.

    Args:
      package: the imported package.
      workdir: run directory.
      identity: what distinguishes the run from others of the same name.
      config: all options of the run.
    """

    def __init__(self, package: ModuleType, workdir: AnyPath, identity: str, config: Mapping[str, Any]):
        self._name, self._is_wandb = package.__name__, package.__name__ == "wandb"
        project = os.environ.get(f"{self._name.upper()}_PROJECT") or workdir.parent.name or "runs"
        if self._is_wandb:
            options = {"id": f"{workdir.name}-{identity}", "name": workdir.name, "dir": str(workdir)}
        else:  # where a run's name is its identity
            options = {"name": f"{workdir.name}-{identity}", "embed": False}
        try:
            self._run = package.init(project=project, config=dict(config), resume="allow", **options)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"config.mirrors: {self._name} cannot start ({type(error).__name__}: {reason})") from error
        if self._is_wandb:  # whose own steps must not decrease, as those of a resumed run may
            self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of an update. After an error, which is logged, nothing more is written."""
        if self._run is None:
            return
        try:
            if self._is_wandb:
                self._run.log({**metrics, "step": step})
            else:
                self._run.log(dict(metrics), step=step)
        except Exception as error:  # a service must not end a training
            log.error("%s takes no more metrics, which metrics.jsonl has (%s: %s)", self._name, type(error).__name__, error)
            self._run = None

    def close(self) -> None:
        """Ends the run there, after all that was written has been taken."""
        if self._run is not None:
            self._run.finish()
