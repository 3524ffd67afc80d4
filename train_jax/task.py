"""Interface between models and the trainer.

A config names a task module (`config.task = "clip_jax.task"`), which defines

    OPTIONS: type[Options]                               options of the task: `model`, `tokenizer`, `augment`, …
    EVALUATORS: Mapping[str, type[EvaluatorOptions]]     options of each evaluator type
    make(config, workdir) -> Task                        `workdir`: run directory, whose artifacts are reused, or None

and, if options depend on other options (such as a pretrained checkpoint),

    complete(config, stated)                             sets the dependent options in `config`, in place; `stated` holds
                                                         only the options that the user's config sets

and, for `train-jax evaluate` of public weights, either an option `pretrained`, the path of weights to start from, or

    open_weights(path) -> checkpoint                     opens public weights; `checkpoint.options` are `config.model`
    make_evaluation(config, checkpoint) -> Task          task that is evaluated only; `Task.pretrained` reads the weights

and, for model cards (`train_jax.model_card`),

    CARD: Kind                                           what a card tells of the model besides its run

and, for `train-jax plan`,

    write_placeholders(config, folder) -> (config, record)   replaces files that are not present by random ones in `folder`,
                                                         which `make` uses as the run directory; and a record of the data
    PROGRAMS: Mapping[str, str]                          what `train-jax plan --what` plans besides the training step, and
                                                         the module of each, which defines `OPTIONS: type[Options]` and
                                                         `make(config, folder, mesh, options)`, the list of its
                                                         `train_jax.plan.program.Program`s on a mesh ("batch",)
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
    """Training task: the functions of one model that the trainer needs.

    Attributes:
      init: `(rng, batch) -> (params, extra)` for a batch of one example of zeros, or for `{}`, which must give the same
        (`train-jax evaluate` has no training batch, and `records` may take hours). `params` is a dict by player
        (`{"clip": …}`, `{"generator": …, "discriminator": …}`); its leaves may have logical axis names as
        `nn.LogicallyPartitioned` boxes. `extra` is a dict of state without gradients, `{}` for most models.
      loss: `(params, extra, batch, rng, step) -> (scalar, (metrics, statistics))`, over the *global* batch or, with
        `config.accumulate`, a micro-batch. The losses of all players are summed; `stop_gradient` separates the players.
        `metrics` are scalars by name; `statistics` is a dict from which `extra` is updated. `step` is the number of
        previous updates, skipped ones included.
      example: `(record, rng) -> dict of NumPy arrays` of fixed shapes; images are uint8. `rng` is a
        `numpy.random.Generator` that depends only on the seed and the position of the example in the stream.
      evaluators: type -> factory `(options, context) -> evaluator`. An evaluator is a callable
        `(params, extra) -> (metrics, images)`: floats by name, and uint8 [H, W, 3] images by name.
      artifacts: file name -> text or bytes that the run directory needs beside the weights, such as `tokenizer.json`.
      records: `(source) -> sequence` of the length of the source that replaces the records of the source, such as
        precomputed codes of the images. None: no replacement.
      pretrained: `() -> (params, extra)` that returns initial weights as NumPy arrays without boxes: the trees of `init`, or
        subtrees. Missing arrays are initialised by `init`. None: all arrays are initialised by `init`.
      revise: `(params, extra, statistics, rng, step) -> (params, extra, moved, metrics)`, called once after each completed
        update; `step` is the number of previously completed updates. It applies changes without gradients, such as the
        reset of unused codes of a codebook. The arrays of `statistics` have a leading axis of micro-batches. `moved` maps
        parameter paths to bool [rows], the changed rows; their moments are reset to zero and their averages to the new
        values. None: `extra` is updated with the means of the statistics over micro-batches (as for running means of batch
        norm).
      warnings: `(metrics, step) -> list of sentences`, warnings to log about the metrics of a logged update.
      mean_over_examples: whether the loss and its metrics are means over examples, as the likelihood of sequences is, and
        a loss that compares examples or uses statistics of a batch is not. With `config.accumulate`, each index of
        the mesh axis `data` then adds up its own gradients (`train_jax.sharding.map_over_data`): one all-reduce an update.
      flops: analytic FLOPs of one example's forward *and* backward pass; None if unknown.
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
    mean_over_examples: bool = False
    flops: float | None = None


def average_statistics(statistics):
    """Averages statistics over micro-batches, the first axis."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)


def module(config: ConfigDict) -> ModuleType:
    """Imports the task module `config.task`. Raises ConfigError if it cannot be imported or is not a task module."""
    name = config.get("task", "")
    try:
        task = importlib.import_module(name) if isinstance(name, str) and name.strip(".") == name != "" else None
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # the task module exists, but one of its imports is missing
        raise ConfigError(f"config.task = {name!r}: there is no module {error.name!r}") from error
    if task is None or not all(hasattr(task, attribute) for attribute in ("OPTIONS", "EVALUATORS", "make")):
        raise ConfigError(
            f"config.task = {name!r} is not a task: name a module that defines OPTIONS, EVALUATORS and make(config, "
            "workdir), such as 'clip_jax.task'"
        )
    return task
