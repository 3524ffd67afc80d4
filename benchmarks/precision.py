"""Compares training losses in float32, bfloat16 and float8: the same data, seeds and updates.

    python -m benchmarks.precision [--config clip/digits] [--updates 300] [--every 50]

Measures the mean loss of each `--every` updates. Float8 is `compute.float8` with activations in bfloat16.
"""

import argparse
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.results import Row
from train_jax import config as config_lib
from train_jax import feed, sharding
from train_jax import task as task_lib
from train_jax.data import sources
from train_jax.data.stream import TrainStream
from train_jax.prepare import trace_step

PRECISIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float8": {"dtype": "bfloat16", "float8": True},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="clip/digits")
    parser.add_argument("--updates", type=positive, default=300)
    parser.add_argument("--every", type=positive, default=50)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for precision, compute in PRECISIONS.items():
        losses = train(arguments.config, compute, arguments.updates)
        for start in range(0, arguments.updates, arguments.every):
            end = min(start + arguments.every, arguments.updates)
            name = f"mean loss of updates {start + 1} to {end}"
            yield Row(name, float(np.mean(losses[start:end])), "", {"config": arguments.config, "precision": precision})


def train(name: str, compute: dict, updates: int) -> list[float]:
    """Trains a shipped config, and returns the loss of each update."""
    config = load_config(name)
    config.steps = updates
    config = config_lib.resolve(config)
    config.compute.update(compute)
    task = task_lib.module(config).make(config, None)
    source = sources.open_source(config.data.source, config.data.split)
    stream = TrainStream(source, task.example, batch_size=config.data.batch_size, seed=config.seed)
    mesh = sharding.make_mesh(config.mesh)
    split = sharding.batch_sharding(mesh)
    batch = feed.to_device(next(stream), split)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    plan, traced = trace_step(config, task, mesh, shapes, {})
    losses = []
    with jax.set_mesh(mesh):
        step, state = traced.lower().compile(), plan.create()
        for _ in range(updates):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
            batch = feed.to_device(next(stream), split)
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    main(rows, add_arguments)
