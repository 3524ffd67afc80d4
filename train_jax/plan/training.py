"""Training step of a config, traced for a target whose devices need not be present."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import prepare, sharding
from train_jax import task as task_lib
from train_jax.data.stream import BROKEN
from train_jax.errors import ConfigError
from train_jax.plan.program import Program, bytes_per_device
from train_jax.plan.targets import Target
from train_jax.step import NOTICE, StatePlan
from train_jax.task import Task


def trace_training(config: ConfigDict, target: Target) -> Program:
    """Traces the training step of a config for a target.

    Needs no data and no devices: files that the config names and that are missing are replaced by placeholders
    (`write_placeholders` of the task). Raises ConfigError for invalid options, or a task that cannot be planned.
    """
    module = task_lib.module(config)
    if not hasattr(module, "write_placeholders"):
        raise ConfigError(f"config.task = {config.task!r} cannot be planned: it defines no write_placeholders")
    with tempfile.TemporaryDirectory() as folder:
        config, record = module.write_placeholders(config_lib.resolve(config), Path(folder))
        task = prepare.make_task(config, Path(folder))
        mesh = sharding.make_mesh(config.mesh, target.devices())
        sharding.check_batch(mesh, config.data.batch_size, config.accumulate)
        batch = _abstract_batch(task, record, config.data.batch_size, mesh)
        notice = {NOTICE: jax.ShapeDtypeStruct((sharding.parts(mesh),), jnp.int32, sharding=sharding.batch_sharding(mesh))}
        state, step = prepare.trace_step(config, task, mesh, batch, notice)
        residuals = count_residuals(task, state, batch, config, mesh)
    return Program(
        name="train",
        mesh=mesh,
        traced=step,
        parts=_state_bytes(state.abstract) | {"activations (estimate)": residuals},
        unit="examples",
        units=config.data.batch_size,
        parameters=sum(x.size for x in jax.tree.leaves(state.abstract.params)),
        flops=None if task.flops is None else task.flops * config.data.batch_size,
    )


def _abstract_batch(task: Task, record: Mapping[str, Any], batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a batch of examples like `record`."""
    example = {name: np.asarray(x) for name, x in task.example(record, np.random.default_rng(0)).items()}
    example[BROKEN] = np.zeros((), np.int32)
    split = sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype, sharding=split) for name, x in example.items()}


def count_residuals(task: Task, state: StatePlan, batch: Mapping[str, Any], config: ConfigDict, mesh: Mesh) -> int:
    """Counts the bytes of a device's residuals: what the backward pass of the loss reads beside the parameters.

    Residuals are the arrays with the examples of the (micro-)batch as an axis; each device has its share of them.
    """
    rows = config.data.batch_size // config.accumulate
    micro_batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for name, x in batch.items()
        if name != BROKEN
    }

    def backward(params, extra, batch):
        def loss(params):
            return task.loss(params, extra, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0]

        return jax.vjp(loss, params)[1]

    with jax.set_mesh(mesh):
        leaves = jax.eval_shape(sharding.with_rules(backward), state.abstract.params, state.abstract.extra, micro_batch)
    of_examples = [x for x in jax.tree.leaves(leaves) if any(n and n % rows == 0 for n in x.shape)]
    return sum(x.size * x.dtype.itemsize for x in of_examples) // sharding.parts(mesh)


def _state_bytes(state) -> dict[str, int]:
    """Counts a device's bytes of the training state by part."""
    trees = {"parameters": state.params, "optimiser state": state.opt_state, "averages": state.ema}
    trees |= {"gradients": state.params, "state without gradients": state.extra}
    return {name: size for name, tree in trees.items() if (size := bytes_per_device(tree))}
