"""Running a model over many examples: batches of one size, split over this host's devices, one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def on_devices(variables: Any) -> Any:
    """Weights copied to each of this host's devices."""
    mesh = jax.make_mesh(
        (jax.local_device_count(),), ("batch",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )
    return jax.device_put(variables, NamedSharding(mesh, P()))


def batched(
    program: Callable,
    variables: Any,
    rows: Callable[[int, int], Any],
    count: int,
    row: Any,
    batch_size: int,
) -> np.ndarray:
    """`program(variables, batch)` over `rows(start, stop)` for `count` rows.

    A call with few rows takes the next power of two instead of a whole batch, so that one picture on a laptop does not
    cost a batch of them; there are only a handful of such sizes to compile. Raises ValueError for a batch size below 1.

    Args:
      program: jitted, from n rows to `[n, …]`.
      variables: as `on_devices` gives them.
      rows: arrays with a leading axis, one or a tree of them.
      row: their shapes and types without that axis, as ShapeDtypeStruct.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    mesh: Mesh = jax.tree.leaves(variables)[0].sharding.mesh
    size = min(batch_size, 1 << max(count - 1, 0).bit_length())
    size = -(-size // mesh.size) * mesh.size
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), row)
    if not count:
        found = jax.eval_shape(program, variables, whole)
        return np.zeros((0, *found.shape[1:]), found.dtype)

    def padded(part: np.ndarray, like) -> jax.Array:
        batch = np.zeros(like.shape, like.dtype)
        batch[: len(part)] = part
        return jax.device_put(batch, NamedSharding(mesh, P("batch")))

    found = []
    # Evaluators call this in the middle of training, under another mesh.
    with jax.set_mesh(mesh):
        for start in range(0, count, size):
            batch = jax.tree.map(padded, rows(start, min(start + size, count)), whole)
            # The call returns before the device is done: the next batch is made meanwhile.
            found.append(program(variables, batch))
    return np.concatenate([np.asarray(x) for x in found])[:count]
