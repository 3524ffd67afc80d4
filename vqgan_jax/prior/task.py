"""The training task of a class-conditional or unconditional prior; see `vqgan_jax.stage2.task`."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from train_jax.task import Task
from vqgan_jax.prior import prior
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2 import evaluators, task
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.vqgan import Vqgan


@dataclasses.dataclass(frozen=True)
class PriorTaskOptions(task.Stage2TaskOptions):
    """Options of the prior's task."""

    model: PriorOptions = PriorOptions()


OPTIONS, EVALUATORS, PROGRAMS = PriorTaskOptions, evaluators.EVALUATORS, task.PROGRAMS
open_weights = prior.open_checkpoint
write_placeholders, make_evaluation = task.write_placeholders, task.make_evaluation


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Builds the task from a resolved config. Raises ConfigError for invalid options, LoadError for an invalid VQGAN."""
    vq, options, condition = open_parts(config, workdir)
    return task.make(config, workdir, vq, options, condition)


def open_parts(config: ConfigDict, workdir: Path | None) -> tuple[Vqgan, PriorOptions, ClassCondition]:
    """Opens the first stage, the options of the transformer, and the condition of a resolved config."""
    options, vq = PriorOptions.parse(config.model, "model"), task.open_vqgan(config, workdir)
    return vq, options, options.condition(config.condition_dropout)
