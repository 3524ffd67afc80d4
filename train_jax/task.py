"""The interface between a model and the trainer: what a model package provides so that it can be trained.

A config names a module (`config.task = "clip_jax.task"`). That module offers

    OPTIONS: type[Options]                               its part of the config: `model`, `tokenizer`, `augment`, …
    EVALUATORS: Mapping[str, type[EvaluatorOptions]]     the options of each type of evaluator
    make(config, workdir) -> Task                        `workdir` is the run directory (its artifacts are reused), or None

and, where some options follow from others (from a checkpoint that is to be trained on),

    complete(config, stated)                             fills in `config`, which has every option; `stated` holds the
                                                         user's own alone
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from train_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Task:
    """A training task: plain functions of one model. Everything else about training is written once, in this package.

    Attributes:
      init: `(rng, batch) -> (params, extra)`, where the batch is one example of zeros. `params` is a dict by player
        (`{"clip": …}`, `{"generator": …, "discriminator": …}`); its leaves may carry logical axis names as
        `nn.LogicallyPartitioned` boxes. `extra` is a dict: the state that changes without a gradient, `{}` for most.
      loss: `(params, extra, batch, rng, step) -> (scalar, (metrics, statistics))`, over the *global* batch or, with
        `config.accumulate`, a micro-batch of it. One scalar whatever the number of players: their losses are summed, and
        `stop_gradient` keeps each from the parameters of the others. `metrics` are scalars by name; `statistics`, a dict,
        are what `extra` changes by. `step` counts the updates tried before this one.
      example: `(record, rng) -> dict of numpy arrays` of fixed shapes; images stay uint8. `rng` is a
        `numpy.random.Generator` that depends on the seed and on the example's position in the stream alone.
      evaluators: type -> factory `(options, context) -> evaluator`; an evaluator is a callable
        `(params, extra) -> (metrics, images)`: floats by name, and uint8 [H, W, 3] pictures by name.
      artifacts: file name -> text or bytes that the run directory needs beside the weights, such as `tokenizer.json`.
      records: `(source) -> sequence` with the source's length: what `example` gets instead of the source's own records,
        such as codes of the pictures, computed once; `init` then needs no batch, and is also called with `{}`. None: the
        source's own.
      pretrained: `() -> (params, extra)` as NumPy arrays, of the shapes that `init` gives and without boxes, or parts of
        these trees: what a new run starts from, instead of what `init` draws. None: `init`.
      revise: `(params, extra, statistics, rng, step) -> (params, extra, moved, metrics)` once after each update that is
        made, `step` of which were made before: what changes by a rule and not by a gradient, such as unused codes of a
        codebook. Each array of `statistics` has an axis of micro-batches first. `moved`: path of a parameter ->
        bool [rows], the rows that moved; their moments are set to zero, and their average to the new value. None: the
        means of the statistics over micro-batches are the new entries of `extra` (right for running means, of batch norm
        for one).
      warnings: `(metrics, step) -> list of sentences` that the log shall warn with, about the metrics of a logged update.
      flops: analytic floating-point operations of one example's forward *and* backward pass, or None if unknown.
    """

    init: Callable
    loss: Callable
    example: Callable
    evaluators: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    artifacts: Mapping[str, str | bytes] = dataclasses.field(default_factory=dict)
    records: Callable | None = None
    pretrained: Callable | None = None
    revise: Callable | None = None
    warnings: Callable | None = None
    flops: float | None = None


def averaged(statistics):
    """Averages statistics over micro-batches, their first axis."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)


def module(config: ConfigDict) -> ModuleType:
    """Imports the module that `config.task` names; ConfigError if it cannot be imported or is not a task module."""
    name = config.get("task", "")
    try:
        task = importlib.import_module(name) if isinstance(name, str) and name.strip(".") == name != "" else None
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # the module is there, and something that it imports is missing: the plain traceback says what
        raise ConfigError(f"config.task = {name!r}: there is no module {error.name!r}") from error
    if task is None or not all(hasattr(task, attribute) for attribute in ("OPTIONS", "EVALUATORS", "make")):
        raise ConfigError(
            f"config.task = {name!r} is not a task: name a module that offers OPTIONS, EVALUATORS and make(config, "
            "workdir), such as 'clip_jax.task'"
        )
    return task
