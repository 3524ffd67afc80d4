"""Compares the shared training step with a minimal step, and with the throughput of the data pipeline.

    python -m benchmarks.step

Measures updates of `configs/clip/shapes.py` by `make_train_step` (skipping of bad updates, counters, metrics, donation) and
by a minimal jitted step with the same model and optimiser, alternating; then examples per second of the pipeline alone.
"""

import argparse
import time
from collections.abc import Iterator

import jax
import optax

from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.results import OURS, Row
from benchmarks.timing import compare_rates, flops_rows, time_in_turns
from train_jax import config as config_lib
from train_jax import feed, sharding
from train_jax import task as task_lib
from train_jax.data import sources
from train_jax.data.stream import BROKEN, TrainStream
from train_jax.prepare import trace_step

UPDATES = 4  # of a turn
BARE = "a minimal step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=5)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    config = config_lib.resolve(load_config("clip/shapes"))
    task = task_lib.module(config).make(config, None)
    source = sources.open_source(config.data.source, config.data.split)
    size = config.data.batch_size
    iterator = TrainStream(source, task.example, batch_size=size, seed=0)
    host_batch = next(iterator)
    mesh = sharding.make_mesh(config.mesh)
    batch = feed.to_device(host_batch, sharding.batch_sharding(mesh))
    plain = {name: x for name, x in batch.items() if name != BROKEN}

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    plan, traced = trace_step(config, task, mesh, shapes, {})
    with jax.set_mesh(mesh):
        shared, state = traced.lower().compile(), plan.create()

        bare_tx = optax.chain(
            optax.clip_by_global_norm(config.optim.clip),
            optax.adamw(
                plan.optimizer.schedules["clip"], b2=config.optim.args.b2, weight_decay=config.optim.weight_decay
            ),
        )

        @jax.jit
        def bare(params, opt_state, batch, key):
            grads = jax.grad(lambda p: task.loss(p, {}, batch, key, 0)[0])(params)
            updates, opt_state = bare_tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        params = jax.tree.map(lambda x: x.copy(), state.params)
        opt_state, key = bare_tx.init(params), jax.random.key(0)

        def update_shared():
            nonlocal state
            for _ in range(UPDATES):
                state, _ = shared(state, batch)
            return state

        def update_bare():
            nonlocal params, opt_state
            for _ in range(UPDATES):
                params, opt_state = bare(params, opt_state, plain, key)
            return params

        seconds = time_in_turns({OURS: update_shared, BARE: update_bare}, arguments.rounds)

    settings = {"config": "clip/shapes", "batch": size, "dtype": config.compute.dtype}
    yield from compare_rates("training pairs", seconds, UPDATES * size, "a second", settings)
    yield from flops_rows("training pairs", seconds[OURS], UPDATES * task.flops * size, settings)
    begun, batches = time.perf_counter(), 8
    for _ in range(batches):
        next(iterator)
    rate = batches * size / (time.perf_counter() - begun)
    yield Row(f"pairs of the input pipeline, {config.data.source}", rate, "a second", settings)


if __name__ == "__main__":
    main(rows, add_arguments)
