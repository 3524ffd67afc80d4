"""Programs that a task offers to be planned: traced for absent devices, with the bytes of their arguments."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nn_jax.mixed_precision import round_weights
from train_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Program:
    """Program to plan, traced but not compiled. Bytes are those of one device.

    Attributes:
      name: such as "train", "encode_image", "decode".
      mesh: mesh of devices, which need not be present.
      traced: result of `jax.jit(function).trace(…)`.
      parts: bytes by part, such as "weights", for the report.
      unit: what an execution makes, in the plural, such as "images" or "codes".
      units: how many of them, over all devices.
      parameters: number of parameters.
      flops: analytic FLOPs of an execution over all devices; None: unknown.
      passes: how often an execution reads its arguments, such as the length of a sampling loop; 0: unknown.
      held: bytes of the arrays that are in memory while it runs, whether it reads them or not; 0: those it reads.
    """

    name: str
    mesh: Mesh
    traced: jax.stages.Traced
    parts: Mapping[str, int]
    unit: str
    units: int
    parameters: int
    flops: float | None = None
    passes: int = 0
    held: int = 0


def trace_program(
    name: str, function: Callable, mesh: Mesh, arguments: Mapping[str, Any], static: Mapping[str, Any] = {}, **fields: Any
) -> Program:
    """Traces a program for inference.

    Args:
      function: jitted function of the values of `arguments`, in their order.
      arguments: trees of ShapeDtypeStructs with shardings (`place`) by part; "weights" are the parameters.
      static: static arguments of the function.
      fields: unit, units, flops and passes of `Program`.
    """
    with jax.set_mesh(mesh):
        traced = function.trace(*arguments.values(), **static)
    parts = {part: bytes_per_device(tree) for part, tree in arguments.items()}
    parameters = sum(x.size for x in jax.tree.leaves(arguments["weights"]))
    return Program(name, mesh, traced, parts, parameters=parameters, held=sum(parts.values()), **fields)


def place(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Returns the ShapeDtypeStructs of a tree of arrays or ShapeDtypeStructs, sharded over the first axis by `spec`."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def rounded(variables: Any, dtype: DTypeLike) -> Any:
    """Returns the ShapeDtypeStructs of weights as loaded models have them in `dtype`."""
    return jax.eval_shape(lambda tree: round_weights(tree, dtype), variables)


def bytes_per_device(tree: Any) -> int:
    """Counts the bytes on each device of a tree of arrays or ShapeDtypeStructs; those without sharding are replicated."""

    def count(x) -> int:
        sharding = getattr(x, "sharding", None)
        return math.prod(sharding.shard_shape(x.shape) if sharding else x.shape) * x.dtype.itemsize

    return sum(map(count, jax.tree.leaves(tree)))


def check_rows(mesh: Mesh, name: str, rows: int) -> None:
    """Raises ConfigError unless `rows`, the option `name` of a program, split evenly over the devices."""
    if rows % mesh.size:
        raise ConfigError(f"--{name}={rows} must be a multiple of {mesh.size}, the devices of the target")
