"""Checkpoints of second stages, and their run directories of `train-jax`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from train_jax import run_directory
from train_jax.compute import TransformerCompute
from vqgan_jax.pretrained.checkpoint import convert_errors
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.generator import CodeGenerator
from vqgan_jax.stage2.model import CodeTransformerOptions
from vqgan_jax.vqgan import Vqgan
from vqgan_jax.vqgan import load as load_vqgan

VQGAN = "vqgan.safetensors"  # artifact of a run
Generator = TypeVar("Generator", bound=CodeGenerator)
Options = TypeVar("Options", bound=CodeTransformerOptions)


@dataclasses.dataclass(frozen=True)
class Stage2Checkpoint:
    """A checkpoint of a second stage whose weights are not read yet.

    Attributes:
      name: source of the weights, for messages.
      options: options of the transformer.
      condition: condition of the codes.
      vqgan: VQGAN of the codes.
      size: side of the images in pixels.
      read: function that reads the weights; returns parameters, and a name that includes the step.
      compute: precision used in training.
    """

    name: str
    options: CodeTransformerOptions
    condition: Condition
    vqgan: Vqgan
    size: int
    read: Callable[[], tuple[dict, str]]
    compute: TransformerCompute = TransformerCompute()

    def load(self, cls: type[Generator]) -> Generator:
        """Loads the model as an instance of `cls`. Raises LoadError for damaged or mismatched weights."""
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
    """Opens a checkpoint of a run, with averaged weights if the run has them; returns None for other directories.

    Args:
      step: step of the checkpoint; None for the newest readable checkpoint.
      task, what: see `train_jax.run_directory.open_config`.
      options: options class of `config.model`.
      artifacts: files of the run that the condition needs.
      condition: function that builds the condition from the run's config and the parsed `config.model`.
    """
    config = run_directory.open_config(path, task, what, (*artifacts, VQGAN))
    if config is None:
        return None
    vqgan = load_vqgan(path / VQGAN)

    def read() -> tuple[dict, str]:
        params, _, name = run_directory.load_weights(path, step)
        return jax.tree.map(np.asarray, params["generator"]), name

    with convert_errors(path):
        size = config["vqgan"]["size"] or vqgan.size
        model = options.parse(config["model"], "model")
        compute = TransformerCompute.parse(config["compute"], "compute")
        return Stage2Checkpoint(str(path), model, condition(config, model), vqgan, size, read, compute)
