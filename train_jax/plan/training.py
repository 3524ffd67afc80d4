"""Plan of the training step of a config, compiled for a target whose devices need not be present."""

import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import prepare, profiling, sharding
from train_jax import task as task_lib
from train_jax.data.stream import BROKEN
from train_jax.errors import ConfigError
from train_jax.plan import hlo
from train_jax.plan.report import Plan
from train_jax.plan.targets import Target
from train_jax.step import NOTICE, StatePlan
from train_jax.task import Task

_EXPENSIVE = 10  # operations in the report
_NEEDED = re.compile(r"total memory required[^(]*\((\d+(?:\.\d+)?)([KMG])\)|(?:Used|Reserved) (\d+(?:\.\d+)?)([KMG])")


def plan_training(config: ConfigDict, target: Target) -> Plan:
    """Compiles the training step of a config for a target and plans its memory and time.

    Needs no data and no devices: files that the config names and that are missing are replaced by placeholders
    (`write_placeholders` of the task). Raises ConfigError for invalid options, or a task that cannot be planned.
    """
    module = task_lib.module(config)
    if not hasattr(module, "write_placeholders"):
        raise ConfigError(f"config.task = {config.task!r} cannot be planned: it defines no write_placeholders")
    with tempfile.TemporaryDirectory() as folder:
        config, record = module.write_placeholders(config_lib.resolve(config), Path(folder))
        task = module.make(config, Path(folder))
        mesh = sharding.make_mesh(config.mesh, target.devices())
        sharding.check_batch(mesh, config.data.batch_size, config.accumulate)
        batch = _abstract_batch(task, record, config.data.batch_size, mesh)
        notice = {NOTICE: jax.ShapeDtypeStruct((sharding.parts(mesh),), jnp.int32, sharding=sharding.batch_sharding(mesh))}
        state, step = prepare.trace_step(config, task, mesh, batch, notice)
        residuals = count_residuals(task, state, batch, config, mesh)
        start = time.perf_counter()
        try:
            with jax.set_mesh(mesh):
                compiled = step.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            compiled, message = None, " ".join(str(error).split())
    seconds = time.perf_counter() - start
    parts = _state_bytes(state.abstract) | {"activations (estimate)": residuals}
    if compiled is None:
        text, peak_bytes = "", _parse_needed(message)
    else:
        text, message, memory = compiled.as_text(), "", profiling.memory_plan(compiled)
        parts |= {"temporaries": memory.temporaries, "program": memory.code}
        peak_bytes = memory.needed
    instructions = hlo.parse(text) if text else []
    chip, peak = target.chip, target.peak_flops()
    cycles = hlo.total_cycles(instructions) if chip.clock else 0
    flops = None if task.flops is None else task.flops * config.data.batch_size
    return Plan(
        target=target.name,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=config.data.batch_size,
        fits=False if message else (peak_bytes <= chip.memory if chip.memory else None),
        peak_bytes=peak_bytes,
        memory=chip.memory,
        parts=parts,
        parameters=sum(x.size for x in jax.tree.leaves(state.abstract.params)),
        flops=flops,
        step_seconds=cycles / chip.clock if cycles else None,
        floor_seconds=flops / (peak * mesh.size) if peak and flops else None,
        collectives=tuple(hlo.collectives(instructions)),
        kernels=hlo.kernels(instructions),
        expensive=tuple((name, n / (chip.clock or 1)) for name, n in hlo.most_expensive(instructions, _EXPENSIVE)),
        unknown_loops=hlo.unknown_loops(text) if text else 0,
        compile_seconds=seconds,
        error=message[:300],
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

    def count(tree) -> int:
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
        )  # fmt: skip

    parts = {"parameters": count(state.params), "optimiser state": count(state.opt_state), "averages": count(state.ema)}
    parts |= {"gradients": parts["parameters"], "state without gradients": count(state.extra)}
    return {name: size for name, size in parts.items() if size}


def _parse_needed(message: str) -> int:
    """Reads the required memory from the message of a compiler that ran out of memory; 0 if it does not say it."""
    match = _NEEDED.search(message)
    if not match:
        return 0
    size, unit = filter(None, match.groups())
    return int(float(size) * 2.0 ** {"K": 10, "M": 20, "G": 30}[unit])
