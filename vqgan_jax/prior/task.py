"""The training task of a class-conditional or unconditional prior; see `vqgan_jax.stage2.task`."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from train_jax.errors import ConfigError
from train_jax.task import Task
from vqgan_jax import card
from vqgan_jax.prior import prior
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2 import evaluators, task
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.vqgan import Vqgan


@dataclasses.dataclass(frozen=True)
class PriorTaskOptions(task.Stage2TaskOptions):
    """Options of the prior's task."""

    model: PriorOptions = PriorOptions()


_FINETUNE = "vqgan/prior_finetune"  # the shipped config that starts from a checkpoint

OPTIONS, EVALUATORS, PROGRAMS, CARD = PriorTaskOptions, evaluators.EVALUATORS, task.PROGRAMS, card.PRIOR
open_weights = prior.open_checkpoint


def complete(config: ConfigDict, stated: ConfigDict) -> None:
    """Completes a config from the second stage `config.pretrained`. Raises ConfigError for options that contradict it."""
    if config.pretrained:
        checkpoint = _open_pretrained(config)
        _require_classes(checkpoint)
        options = {**checkpoint.options.to_dict(), "classes": checkpoint.condition.classes}
        task.adopt_checkpoint(config, stated, checkpoint, options, _FINETUNE)


def make_evaluation(config: ConfigDict, checkpoint: Stage2Checkpoint) -> Task:
    """Makes a task that evaluates public weights; see `train_jax.task`."""
    _require_classes(checkpoint)
    return task.make_evaluation(config, checkpoint)


def _require_classes(checkpoint: Stage2Checkpoint) -> None:
    """Raises ConfigError for a second stage of maps."""
    if not isinstance(checkpoint.condition, ClassCondition):
        raise ConfigError(
            f"{checkpoint.name} is conditioned on maps, which records do not have: it can be sampled from, but not trained "
            "or evaluated"
        )


def _open_pretrained(config: ConfigDict) -> Stage2Checkpoint:
    return prior.open_checkpoint(config.pretrained, vqgan=config.vqgan.path or None)


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Builds the task from a resolved config. Raises ConfigError for invalid options, LoadError for an invalid VQGAN."""
    vq, options, condition = open_parts(config, workdir)
    return task.make(config, workdir, vq, options, condition, open_pretrained=_open_pretrained)


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a VQGAN that is named by its config; see `train_jax.task`."""
    return task.write_placeholders(config, folder, _open_pretrained(config) if config.pretrained else None)


def open_parts(config: ConfigDict, workdir: Path | None) -> tuple[Vqgan, PriorOptions, ClassCondition]:
    """Opens the first stage, the options of the transformer, and the condition of a resolved config."""
    options = PriorOptions.parse(config.model, "model")
    vq = task.open_vqgan(config, workdir, task.open_start(config, workdir, _open_pretrained))
    return vq, options, options.condition(config.condition_dropout)
