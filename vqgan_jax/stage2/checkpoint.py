"""Checkpoints of second stages, and their run directories of `train-jax`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from train_jax import run_directory
from train_jax.compute import TransformerCompute, inference_dtype
from vqgan_jax.pretrained import open_checkpoint as open_vqgan
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.generator import CodeGenerator
from vqgan_jax.stage2.model import CodeTransformerOptions
from vqgan_jax.vqgan import assemble_checkpoint

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
      first_stage: checkpoint of the VQGAN of the codes.
      size: side of the images in pixels; 0: that of the VQGAN.
      read: function that reads the weights; returns parameters, and a name that includes the step.
      compute: precision used in training.
    """

    name: str
    options: CodeTransformerOptions
    condition: Condition
    first_stage: Checkpoint
    size: int
    read: Callable[[], tuple[dict, str]]
    compute: TransformerCompute = TransformerCompute()

    def load(self, cls: type[Generator], dtype: str | None) -> Generator:
        """Loads both stages as an instance of `cls`. Raises LoadError for damaged or mismatched weights.

        Args:
          dtype: precision, as in `vqgan_jax.load`.
        """
        dtype = dtype and inference_dtype(dtype)
        vqgan = assemble_checkpoint(self.first_stage, dtype)
        compute = dataclasses.replace(self.compute, dtype=dtype) if dtype else self.compute
        params, name = self.read()
        return cls.assemble(self.options, params, self.condition, vqgan, self.size or vqgan.size, name, compute)


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
    first_stage = open_vqgan(path / VQGAN)

    def read() -> tuple[dict, str]:
        params, _, name = run_directory.load_weights(path, step)
        return jax.tree.map(np.asarray, params["generator"]), name

    with convert_errors(path):
        model = options.parse(config["model"], "model")
        compute = TransformerCompute.parse(config["compute"], "compute")
        size = config["vqgan"]["size"]
        return Stage2Checkpoint(str(path), model, condition(config, model), first_stage, size, read, compute)
