"""Second stages in files: what the files tell before weights are read, and run directories of `train-jax`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from train_jax import run_directory
from vqgan_jax.pretrained.checkpoint import describing
from vqgan_jax.stage2 import model as model_lib
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.generator import CodeGenerator
from vqgan_jax.stage2.task import VQGAN
from vqgan_jax.vqgan import Vqgan
from vqgan_jax.vqgan import load as load_vqgan

Generator = TypeVar("Generator", bound=CodeGenerator)


@dataclasses.dataclass(frozen=True)
class Stage2Checkpoint:
    """A second stage in files.

    Attributes:
      name: where it came from, for people.
      options: of `vqgan_jax.stage2.model.defaults`, as far as the files tell them; others are ignored.
      condition: what its codes are conditioned on.
      vqgan: the VQGAN whose codes it knows.
      size: side of its pictures.
      read: reads the weights: `(parameters, name with the step)`.
    """

    name: str
    options: Mapping
    condition: Condition
    vqgan: Vqgan
    size: int
    read: Callable[[], tuple[dict, str]]

    def load(self, kind: type[Generator]) -> Generator:
        """The loaded value of this class. LoadError for weights that are damaged or do not belong to the options."""
        options = model_lib.defaults()
        with describing(self.name):
            options.update({key: value for key, value in self.options.items() if key in options})
        params, name = self.read()
        return kind.assemble(options, params, self.condition, self.vqgan, self.size, name)


def open_run(
    path: Path,
    step: int | None,
    *,
    task: str,
    what: str,
    artifacts: tuple[str, ...] = (),
    condition: Callable[[dict], Condition],
) -> Stage2Checkpoint | None:
    """The newest checkpoint of a run (or that of `step`), averaged weights where there are any; None if it is no run.

    Args:
      task, what: see `train_jax.run_directory.open_config`.
      artifacts: files beside the weights that the condition needs.
      condition: of the run's config.
    """
    config = run_directory.open_config(path, task, what, (*artifacts, VQGAN))
    if config is None:
        return None
    vqgan = load_vqgan(path / VQGAN)

    def read() -> tuple[dict, str]:
        params, _, name = run_directory.load_weights(path, step)
        return jax.tree.map(np.asarray, params["generator"]), name

    with describing(path):
        size = config["vqgan"]["size"] or vqgan.size
        return Stage2Checkpoint(str(path), config["model"], condition(config), vqgan, size, read)
