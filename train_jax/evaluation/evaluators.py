"""Evaluators: named in the config, each with its own schedule, run on the weights for inference.

    config.evals.test = {"type": "zero_shot", "every": 500, "source": "shapes", "split": "test"}

The task defines the evaluator types. An evaluator is a callable `(params, extra) -> (metrics, images)`; its metrics are
logged as `test/accuracy` and so on.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train_jax import agreement, feed, optim, sharding
from train_jax.data import sources, stream
from train_jax.data.errors import BrokenSample, DataError
from train_jax.errors import Interrupted
from train_jax.step import TrainState
from train_jax.task import Task

_MAX_THREADS = 32  # more threads of one process would wait for Python's global lock


@dataclasses.dataclass(frozen=True)
class Context:
    """Context of an evaluator: mesh and config of the run, and access to sharded data.

    Attributes:
      asked_to_stop: function that returns the number of the received stop signal of this host, or 0.
    """

    mesh: Mesh
    config: ConfigDict
    asked_to_stop: Callable[[], int] = lambda: 0
    _compiled: dict[Callable, Callable] = dataclasses.field(default_factory=dict, repr=False)
    _sources: dict[tuple, sources.Source] = dataclasses.field(default_factory=dict, repr=False)

    def source(self, name: str, split: str, where: Sequence[str] = ()) -> sources.Source:
        """Opens a data source by name, once, with the run's data directory and caption templates.

        Args:
          where: conditions on records; see `sources.select`.
        """
        data = self.config.data
        key = (name or data.source, split, tuple(where))
        if key not in self._sources:
            if where:
                source = sources.select(self.source(name, split), where)
            else:
                source = sources.from_config(data, name or data.source, split)
                source = sources.select_readable(source, data.max_broken_eval) if data.max_broken_eval else source
            self._sources[key] = source
        return self._sources[key]

    def source_of(self, options: ConfigDict, split: str = "") -> sources.Source:
        """Opens the data source of an evaluator's options, or another of its splits."""
        return self.source(options.source, split or options.split, options.where)

    def batches(self, records, example: Callable, batch_size: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Yields `(global batch on the mesh, number of rows without padding)`, each record once and in order.

        `batch_size` is rounded up to a multiple of the mesh's batch shards; the last batch is padded. Each host reads its
        own rows in threads, about a batch ahead of the device. A batch is yielded after all hosts have read it: a record
        that one host cannot read is an error on every host, before a program runs. Raises Interrupted if a host receives a
        stop signal.
        """
        agreement.check_same(len(records), "records to evaluate")
        batch_size = sharding.round_up(batch_size, sharding.parts(self.mesh))
        split = sharding.batch_sharding(self.mesh)
        rows = sharding.host_rows(split, batch_size)
        data = self.config.data
        threads = min(data.threads * max(data.workers, 1), _MAX_THREADS)
        batches = stream.eval_batches(records, example, batch_size=batch_size, rows=rows, threads=threads)
        for index, (batch, _) in enumerate(batches):
            if signal_number := max(agreement.gather(self.asked_to_stop())):
                raise Interrupted(signal_number)
            yield feed.to_device(batch, split, batch_size), min(batch_size, len(records) - index * batch_size)

    def replicate(self, x: jax.Array) -> jax.Array:
        """Replicates a sharded array on every device of every host."""
        return self.jit(_identity)(x)

    def jit(self, function: Callable) -> Callable:
        """Compiles `function` under the run's axis rules, with its result replicated on every device.

        Repeated calls with the same function return the same compiled function.
        """
        if function not in self._compiled:
            with_rules = sharding.with_rules(function)
            self._compiled[function] = jax.jit(with_rules, out_shardings=sharding.replicated(self.mesh))
        return self._compiled[function]


def _identity(x: jax.Array) -> jax.Array:
    return x


class Evaluations:
    """Evaluators of a run and their schedules."""

    def __init__(self, config: ConfigDict, task: Task, mesh: Mesh, asked_to_stop: Callable[[], int] = lambda: 0):
        context = Context(mesh, config, asked_to_stop)
        self._steps = config.steps
        self._every = {name: options.every for name, options in config.evals.items()}
        self._evaluators = {
            name: self._evaluator(name, options, task, context) for name, options in config.evals.items()
        }

    @staticmethod
    def _evaluator(name: str, options: ConfigDict, task: Task, context: Context) -> Callable:
        """Makes an evaluator. Raises DataError with the evaluator's name for unusable data."""
        try:
            return task.evaluators[options.type](options, context)
        except (DataError, BrokenSample) as error:
            raise DataError(
                f"config.evals.{name} ({options.type}): {error}. Name data that it can use (--config.evals.{name}.source=…, "
                f".split=…), or leave it out: --config.evals.{name}=none, or all: --config.evals=none"
            ) from error

    def due(self, step: int) -> list[str]:
        """Lists the evaluators due after update `step`: every `every` updates, and all after the last update."""
        last = step == self._steps
        return [name for name, every in self._every.items() if last or (every and step % every == 0)]

    def run(self, names: list[str], params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Runs evaluators on weights for inference and returns `(metrics, images)`.

        Names of metrics and images are prefixed by the evaluator's name.
        """
        metrics, images = {}, {}
        for name in names:
            results, grids = self._evaluators[name](params, extra)
            metrics |= {f"{name}/{key}": float(value) for key, value in results.items()}
            images |= {f"{name}/{key}": grid for key, grid in grids.items()}
        return metrics, images


def evaluation_params(state: TrainState):
    """Returns the weights for inference: the moving average of each averaged player, else the optimiser's weights."""
    params = optim.evaluation_params(state.opt_state, state.params)
    return params if state.ema is None else {**params, **state.ema}
