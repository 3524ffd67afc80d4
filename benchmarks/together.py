"""Compares updates of several runs in one program with updates one run after the other, as `train-jax sweep --together`.

    python -m benchmarks.together [--config clip/digits] [--runs 1 4 12] [--batch 0] [--dtype float32]

The runs differ in learning rates and seeds, and read one random batch. Measures the updates of all runs a second, and the
compilation of both programs; a run alone is compiled once for each learning rate.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import load_config, synthetic
from benchmarks.command import main, positive
from benchmarks.results import OURS, Row
from benchmarks.timing import compare_rates, time_call
from train_jax import prepare, sharding
from train_jax import task as task_lib
from train_jax.sweep.together import Program

ALONE = "one run after the other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="clip/digits", help="shipped config of CLIP or VQGAN")
    parser.add_argument("--runs", type=positive, nargs="+", default=[1, 4, 12])
    parser.add_argument("--batch", type=positive, default=0, help="batch size; 0: that of the config")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tiny", action="store_true", help="use toy models and batches of 4, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    family = arguments.config.partition("/")[0]
    size = 4 if arguments.tiny else arguments.batch or load_config(arguments.config).data.batch_size
    with tempfile.TemporaryDirectory() as folder:
        config = synthetic.make_config(
            family, arguments.config, arguments.dtype, size, "none", Path(folder), arguments.tiny
        )
        task = task_lib.module(config).make(config, Path(folder))
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        batch = jax.device_put(synthetic.make_batch(family, config, 0), sharding.batch_sharding(mesh))
        trace = functools.partial(_trace, task=task, mesh=mesh, batch=batch)
        plans, steps = zip(*(trace(config, rate=1e-4 * (k + 1), seed=k) for k in range(max(arguments.runs))), strict=True)
        settings = {"config": arguments.config, "batch": size, "dtype": arguments.dtype}
        with jax.set_mesh(mesh):
            begun = time.perf_counter()
            alone = steps[0].lower().compile()
            yield Row("compilation of a run alone", time.perf_counter() - begun, "s", settings)
            state = [plans[0].create()]
            seconds = time_call(functools.partial(_update, alone, state, batch))
            for count in arguments.runs:
                stacked = [jax.tree.map(lambda *x: jnp.stack(x), *(plan.create() for plan in plans[:count]))]
                begun = time.perf_counter()
                program = _compile_together(steps[:count], stacked[0], batch)
                yield Row("compilation together", time.perf_counter() - begun, "s", settings | {"runs": count})
                together = time_call(functools.partial(_update, program, stacked, batch))
                contestants = {OURS: together, ALONE: [count * x for x in seconds]}
                yield from compare_rates("updates", contestants, count, "a second", settings | {"runs": count})


def _trace(config: ConfigDict, rate: float, seed: int, task, mesh, batch) -> tuple:
    config = config.copy_and_resolve_references()
    config.optim.lr, config.seed = rate, seed
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    return prepare.trace_step(config, task, mesh, shapes, {})


def _compile_together(steps, state, batch) -> Callable:
    program = Program.of(steps)
    update_all = jax.jit(jax.vmap(program.update, in_axes=(0, 0, None), axis_size=len(steps)), donate_argnums=1)
    return functools.partial(update_all.lower(program.numbers, state, batch).compile(), program.numbers)


def _update(program: Callable, state: list, batch):
    """Makes one update, and replaces the state in `state[0]`."""
    state[0], metrics = program(state[0], batch)
    return metrics


if __name__ == "__main__":
    main(rows, add_arguments)
