"""The second stage of images, of a class or of none, as a task: see `vqgan_jax.stage2.task`."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from train_jax.task import Task
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2 import evaluators, task


@dataclasses.dataclass(frozen=True)
class PriorTaskOptions(task.Stage2TaskOptions):
    """The second stage's part of a config."""

    model: PriorOptions = PriorOptions()


OPTIONS, EVALUATORS = PriorTaskOptions, evaluators.EVALUATORS


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config. ConfigError for options that cannot be, LoadError for a VQGAN that cannot."""
    options, vq = PriorOptions.parse(config.model, "model"), task.open_vqgan(config, workdir)
    return task.make(config, workdir, vq, options, options.condition(config.condition_dropout))
