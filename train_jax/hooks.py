"""Hooks: callbacks of the training loop, named in the config.

    config.hooks = ("train_jax.hooks.WeightHistograms", "my_package.MirrorToWandb")
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from train_jax.errors import ConfigError
from train_jax.metrics import Writer
from train_jax.sharding import path_name
from train_jax.step import TrainState

if TYPE_CHECKING:
    from train_jax.prepare import Prepared


class Hook:
    """Base class of hooks, whose methods do nothing. All hosts call each method.

    Args:
      prepared: the prepared run.
      writer: writer of metrics, TensorBoard events and images; it writes on process 0 only.
    """

    def __init__(self, prepared: "Prepared", writer: Writer):
        self.prepared, self.writer = prepared, writer

    def on_update(self, step: int, state: TrainState) -> None:
        """Runs after the dispatch of update `step`; reading `state` waits for the update."""

    def on_log(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Runs after the metrics of update `step` are written, every `config.log_every` updates."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Runs after the evaluators."""


class WeightHistograms(Hook):
    """Hook that writes histograms of all parameters to TensorBoard, at every logged update."""

    def on_log(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Writes the histograms of parameters that are on this host."""
        for path, value in jax.tree_util.tree_leaves_with_path(state.params):
            if value.is_fully_addressable:
                self.writer.write_histogram(step, f"params/{path_name(path)}", np.asarray(value))


def import_classes(names: Sequence[str]) -> list[type[Hook]]:
    """Imports hook classes by name. Raises ConfigError for a name that is not a hook class."""
    hooks = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            hook = getattr(importlib.import_module(module), attribute) if module else None
        except (ImportError, AttributeError) as error:
            hint = " (the folder of a module of your own must be on PYTHONPATH)" if isinstance(error, ImportError) else ""
            raise ConfigError(f"config.hooks has {name!r}: {error}{hint}") from error
        if not (isinstance(hook, type) and issubclass(hook, Hook)):
            raise ConfigError(f"config.hooks has {name!r}; name classes of train_jax.hooks.Hook, as PACKAGE.MODULE.CLASS")
        hooks.append(hook)
    return hooks
