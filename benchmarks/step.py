"""Compares the shared training step with a minimal step, and with the throughput of the data pipeline.

    python -m benchmarks.step

Measures updates of `configs/clip/shapes.py` by `make_train_step` (skipping of bad updates, counters, metrics, donation) and
by a minimal jitted step with the same model and optimiser, alternating; then examples per second of the pipeline alone.
"""

import platform
import statistics
import time

import jax
import optax

from benchmarks import load_config
from train_jax import config as config_lib
from train_jax import feed, profiling, sharding
from train_jax import task as task_lib
from train_jax.data import sources
from train_jax.data.stream import BROKEN, TrainStream
from train_jax.prepare import trace_step

ROUNDS, UPDATES = 5, 4


def main() -> None:
    config = config_lib.resolve(load_config("clip/shapes"))
    task = task_lib.module(config).make(config, None)
    source = sources.open_source(config.data.source, config.data.split)
    size = config.data.batch_size
    iterator = TrainStream(source, task.example, batch_size=size, seed=0)
    host_batch = next(iterator)
    mesh = sharding.make_mesh(config.mesh)
    peak = profiling.peak_flops(jax.devices())
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
        seconds: dict[str, list[float]] = {"shared step": [], "bare step": []}
        for turn in range(ROUNDS + 1):  # the first round compiles
            begun = time.perf_counter()
            for _ in range(UPDATES):
                state, _ = shared(state, batch)
            jax.block_until_ready(state)
            middle = time.perf_counter()
            for _ in range(UPDATES):
                params, opt_state = bare(params, opt_state, plain, key)
            jax.block_until_ready(params)
            if turn:
                seconds["shared step"].append((middle - begun) / UPDATES)
                seconds["bare step"].append((time.perf_counter() - middle) / UPDATES)

    begun = time.perf_counter()
    batches = 8
    for _ in range(batches):
        next(iterator)
    pipeline_rate = batches * size / (time.perf_counter() - begun)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    machine = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})"
    print(f"{machine}, jax {jax.__version__}, batch {size}, {config.compute.dtype}")
    for name, value in median.items():
        utilisation = "" if peak is None else f", MFU {profiling.mfu(task.flops * size, value, peak):.3f}"
        print(f"{name:<12} {value * 1e3:8.1f} ms/update  {size / value:8.0f} examples/s{utilisation}")
    print(f"shared / bare {median['shared step'] / median['bare step']:.3f}")
    print(f"pipeline     {pipeline_rate:8.0f} examples/s ({config.data.source}: read, decode, tokenise; two threads)")


if __name__ == "__main__":
    main()
