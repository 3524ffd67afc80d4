"""Inference over many examples: batches of one size, split over this host's devices, one compiled program."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def on_devices(variables: Any) -> Any:
    """Replicates weights on each of this host's devices."""
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
    """Applies `program(variables, batch)` to `rows(start, stop)`, in batches, for `count` rows.

    Few rows are padded to the next power of two instead of a full batch, so that one picture on a laptop does not cost a
    batch of them; only a handful of such sizes are compiled. Raises ValueError for a batch size below 1.

    Args:
      program: jitted, from n rows to `[n, …]`.
      variables: as `on_devices` gives them.
      rows: arrays with a leading axis, one or a tree of them.
      row: their shapes and dtypes without that axis, as ShapeDtypeStruct.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    mesh: Mesh = jax.tree.leaves(variables)[0].sharding.mesh
    size = min(batch_size, 1 << max(count - 1, 0).bit_length())
    size = -(-size // mesh.size) * mesh.size
    batch_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), row)
    if not count:
        results = jax.eval_shape(program, variables, batch_shapes)
        return np.zeros((0, *results.shape[1:]), results.dtype)

    def padded(part: np.ndarray, like) -> jax.Array:
        batch = np.zeros(like.shape, like.dtype)
        batch[: len(part)] = part
        return jax.device_put(batch, NamedSharding(mesh, P("batch")))

    results = None
    starts = range(0, count, size)
    # Evaluators call this in the middle of training, under another mesh.
    with jax.set_mesh(mesh):
        batches = (jax.tree.map(padded, rows(start, min(start + size, count)), batch_shapes) for start in starts)
        for start, output in zip(starts, overlapped(program(variables, batch) for batch in batches), strict=True):
            if results is None:
                results = np.empty((count, *output.shape[1:]), output.dtype)
            results[start : start + size] = output[: count - start]
    return results


def overlapped(outputs: Iterable[Any]) -> Iterator[Any]:
    """Copies each of a program's outputs (arrays, or trees of them) to the host while the device computes the next one.

    Two of them at most are on the devices at a time.
    """
    previous = None
    for output in outputs:
        if previous is not None:
            yield jax.device_get(previous)
        previous = output
    if previous is not None:
        yield jax.device_get(previous)


def split_over_hosts(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Computes `function(rows)`, a share of the rows on each host; the result is on every host.

    All hosts must call it with the same rows.
    """
    share = -(-len(rows) // jax.process_count())
    indices = np.minimum(jax.process_index() * share + np.arange(share), len(rows) - 1)
    return multihost_utils.process_allgather(function(rows[indices]), tiled=True)[: len(rows)]
