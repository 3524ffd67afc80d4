"""Batched inference: batches of equal size, sharded over the devices of this host."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train_jax.sharding import round_up


def on_devices(variables: Any, *, offload: bool = False) -> Any:
    """Replicates weights on all devices of this host; with `offload`, in host memory, from where `batched` copies them."""
    mesh, memory = batch_mesh(jax.local_devices()), "pinned_host" if offload else "device"
    return jax.device_put(variables, NamedSharding(mesh, P(), memory_kind=memory))


def batch_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Makes the mesh ("batch",) of devices that hold the weights replicated and share the rows of a batch."""
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


def batched(
    program: Callable,
    variables: Any,
    rows: Callable[[int, int], Any],
    count: int,
    row: Any,
    batch_size: int,
) -> np.ndarray:
    """Applies `program(variables, batch)` to `count` rows in batches and returns the concatenated outputs.

    Fewer than `batch_size` rows are padded to the next power of two only, so a single image does not cost a full batch and
    few sizes are compiled. Raises ValueError for a batch size below 1.

    Args:
      program: jitted function from n rows to an array `[n, …]`.
      variables: weights from `on_devices`; those in host memory are on the devices only during this call.
      rows: function `(start, stop)` -> array, or tree of arrays, with these rows.
      count: total number of rows.
      row: shape and dtype of one row, a tree of ShapeDtypeStructs.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    mesh: Mesh = jax.tree.leaves(variables)[0].sharding.mesh
    size = min(batch_size, 1 << max(count - 1, 0).bit_length())
    size = round_up(size, mesh.size)
    batch_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), row)
    if not count:
        results = jax.eval_shape(program, variables, batch_shapes)
        return np.zeros((0, *results.shape[1:]), results.dtype)

    def pad(part: np.ndarray, like) -> jax.Array:
        batch = np.zeros(like.shape, like.dtype)
        batch[: len(part)] = part
        return jax.device_put(batch, NamedSharding(mesh, P("batch")))

    variables = jax.device_put(variables, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), variables))
    results = None
    starts = range(0, count, size)
    # Evaluators call this function during training, under another mesh.
    with jax.set_mesh(mesh):
        batches = (jax.tree.map(pad, rows(start, min(start + size, count)), batch_shapes) for start in starts)
        for start, output in zip(starts, fetch_overlapped(program(variables, batch) for batch in batches), strict=True):
            if results is None:
                results = np.empty((count, *output.shape[1:]), output.dtype)
            results[start : start + size] = output[: count - start]
    return results


def fetch_overlapped(outputs: Iterable[Any]) -> Iterator[Any]:
    """Copies each output of a program to the host while the devices compute the next output.

    Args:
      outputs: iterable of arrays or trees of arrays.

    At most two outputs are on the devices at a time.
    """
    previous = None
    for output in outputs:
        if previous is not None:
            yield jax.device_get(previous)
        previous = output
    if previous is not None:
        yield jax.device_get(previous)


def split_over_hosts(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Computes `function(rows)` in parallel over the hosts and gathers the result on every host.

    All hosts must call this function with the same rows.
    """
    share = -(-len(rows) // jax.process_count())
    indices = np.minimum(jax.process_index() * share + np.arange(share), len(rows) - 1)
    return multihost_utils.process_allgather(function(rows[indices]), tiled=True)[: len(rows)]
