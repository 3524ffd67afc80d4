"""Evaluators: named in the config, each with its own schedule, run on the weights for inference.

    config.evals.test = {"type": "zero_shot", "every": 500, "source": "shapes", "split": "test"}

The task offers the types; each becomes a callable `(params, extra) -> (metrics, images)` whose metrics are logged as
`test/accuracy` and so on.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train_jax import agreement, feed, optim, sharding
from train_jax.data import sources, stream
from train_jax.data.errors import DataError
from train_jax.errors import Interrupted
from train_jax.step import TrainState
from train_jax.task import Task


@dataclasses.dataclass(frozen=True)
class Context:
    """Context of an evaluator: the mesh, the run's config, its task, and the data, split over hosts and devices.

    `asked_to_stop` returns the number of the signal that asks this host to stop, or 0.
    """

    mesh: Mesh
    config: ConfigDict
    task: Task
    asked_to_stop: Callable[[], int] = lambda: 0
    _compiled: dict[Callable, Callable] = dataclasses.field(default_factory=dict, repr=False)

    def source(self, name: str, split: str) -> sources.Source:
        """Opens a data set by name, with the run's own data directory and caption templates."""
        data = self.config.data
        source = sources.from_config(data, name or data.source, split)
        return sources.readable(source, data.max_broken_eval) if data.max_broken_eval else source

    def batches(self, records, example: Callable, batch_size: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Yields every record once, in order: `(global batch on the mesh, number of rows that are not padding)`.

        `batch_size` is rounded up to what the mesh divides; the last batch is padded. Hosts read their own rows and hand out
        a batch when all have read it: a record that one of them cannot read is an error on each, before a program runs.
        Raises Interrupted if a host is asked to stop.
        """
        agreement.check_same(len(records), "records to evaluate")
        parts = sharding.parts(self.mesh)
        batch_size = -(-batch_size // parts) * parts
        split = sharding.batch_sharding(self.mesh)
        rows = sharding.host_rows(split, batch_size)
        batches = stream.eval_batches(records, example, batch_size=batch_size, rows=rows)
        for index, (batch, _) in enumerate(batches):
            if signal_number := max(agreement.gather(self.asked_to_stop())):
                raise Interrupted(signal_number)
            yield feed.to_device(batch, split, batch_size), min(batch_size, len(records) - index * batch_size)

    def replicate(self, x: jax.Array) -> jax.Array:
        """Gathers an array that is split over hosts and devices onto every one of them."""
        return self.jit(_identity)(x)

    def jit(self, function: Callable) -> Callable:
        """Compiles `function` under the run's axis rules, its result replicated on every device and host.

        The same function is compiled once, however often an evaluator runs.
        """
        if function not in self._compiled:
            ruled = sharding.with_rules(function)
            self._compiled[function] = jax.jit(ruled, out_shardings=sharding.replicated(self.mesh))
        return self._compiled[function]


def _identity(x: jax.Array) -> jax.Array:
    return x


class Evaluations:
    """The evaluators of a run, made once, run on schedule."""

    def __init__(self, config: ConfigDict, task: Task, mesh: Mesh, asked_to_stop: Callable[[], int] = lambda: 0):
        context = Context(mesh, config, task, asked_to_stop)
        self._steps = config.steps
        self._every = {name: options.every for name, options in config.evals.items()}
        self._evaluators = {
            name: self._evaluator(name, options, task, context) for name, options in config.evals.items()
        }

    @staticmethod
    def _evaluator(name: str, options: ConfigDict, task: Task, context: Context) -> Callable:
        try:
            return task.evaluators[options.type](options, context)
        except DataError as error:
            raise DataError(
                f"config.evals.{name} ({options.type}): {error}. Name data that it can use (--config.evals.{name}.source=…, "
                f".split=…), or leave it out: --config.evals.{name}=none, or all: --config.evals=none"
            ) from error

    def due(self, step: int) -> list[str]:
        """Names the evaluators that are due: every `every` updates, and all of them after the last one."""
        last = step == self._steps
        return [name for name, every in self._every.items() if last or (every and step % every == 0)]

    def run(self, names: list[str], state: TrainState) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Runs evaluators; returns metrics and images, each name prefixed by its evaluator's."""
        metrics, images = {}, {}
        params = evaluation_params(state) if names else None
        for name in names:
            results, grids = self._evaluators[name](params, state.extra)
            metrics |= {f"{name}/{key}": float(value) for key, value in results.items()}
            images |= {f"{name}/{key}": grid for key, grid in grids.items()}
        return metrics, images


def evaluation_params(state: TrainState):
    """Selects the weights for inference: the moving average of each player that has one, else the optimiser's choice.
    """
    params = optim.evaluation_params(state.opt_state, state.params)
    return params if state.ema is None else {**params, **state.ema}
