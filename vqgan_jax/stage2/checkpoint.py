"""Checkpoints of second stages, whose weights are read later; run directories of `train-jax`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from train_jax import run_directory
from train_jax.compute import TransformerCompute
from vqgan_jax.pretrained.checkpoint import describing
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.generator import CodeGenerator
from vqgan_jax.stage2.model import CodeTransformerOptions
from vqgan_jax.vqgan import Vqgan
from vqgan_jax.vqgan import load as load_vqgan

VQGAN = "vqgan.safetensors"  # beside the weights of a run
Generator = TypeVar("Generator", bound=CodeGenerator)
Options = TypeVar("Options", bound=CodeTransformerOptions)


@dataclasses.dataclass(frozen=True)
class Stage2Checkpoint:
    """A checkpoint of a second stage.

    Attributes:
      name: where it was loaded from, for messages.
      options: of the transformer.
      condition: what its codes are conditioned on.
      vqgan: the VQGAN of its codes.
      size: side of its images in pixels.
      read: reads the weights: `(parameters, name with the step)`.
      compute: precision of the training.
    """

    name: str
    options: CodeTransformerOptions
    condition: Condition
    vqgan: Vqgan
    size: int
    read: Callable[[], tuple[dict, str]]
    compute: TransformerCompute = TransformerCompute()

    def load(self, cls: type[Generator]) -> Generator:
        """Loads the model as an instance of `cls`. Raises LoadError for weights that are damaged or do not fit."""
        params, name = self.read()
        return cls.assemble(self.options, params, self.condition, self.vqgan, self.size, name, self.compute)


def open_run(
    path: Path,
    step: int | None,
    *,
    task: str,
    what: str,
    options: type[Options],
    artifacts: tuple[str, ...] = (),
    condition: Callable[[dict, Options], Condition],
) -> Stage2Checkpoint | None:
    """Opens a run's newest checkpoint (or that of `step`), with averaged weights if there are any; None if it is no run.

    Args:
      task, what: see `train_jax.run_directory.open_config`.
      options: the class of `config.model`.
      artifacts: files beside the weights that the condition needs.
      condition: builds the condition from the run's config and its parsed `model`.
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
        model = options.parse(config["model"], "model")
        compute = TransformerCompute.parse(config["compute"], "compute")
        return Stage2Checkpoint(str(path), model, condition(config, model), vqgan, size, read, compute)
