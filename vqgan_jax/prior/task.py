"""The second stage of images, of a class or of none, as a task: see `vqgan_jax.stage2.task`."""

from pathlib import Path

from ml_collections import ConfigDict

from train_jax.errors import ConfigError
from train_jax.task import Task
from vqgan_jax.stage2 import task
from vqgan_jax.stage2.condition import ClassCondition


def defaults() -> ConfigDict:
    """The second stage's part of a config."""
    c = task.defaults()
    c.model.classes = 0  # 0: images without labels; else labels 0 to classes - 1
    return c


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config. ConfigError for options that cannot be, LoadError for a VQGAN that cannot."""
    return task.make(config, workdir, condition(config))


def condition(config: ConfigDict | dict) -> ClassCondition:
    """The condition of a run's config."""
    classes = config["model"]["classes"]
    if classes < 0:
        raise ConfigError(f"config.model.classes = {classes}; it must be 0 (no labels) or their number")
    return ClassCondition(classes, droppable=not classes or config["condition_dropout"] > 0)
