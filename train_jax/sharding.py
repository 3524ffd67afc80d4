"""Sharding: the device mesh, one table from logical to mesh axes, and the shardings of a training state.

A module names the logical axes of its parameters (`nn.with_logical_partitioning(init, ("embed", "mlp"))`); `RULES` alone
maps these names to mesh axes. The same model runs on one device or on thousands.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from train_jax.errors import ConfigError

log = logging.getLogger(__name__)

AnyMesh = Mesh | AbstractMesh
AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the mesh axes over which a batch is split

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("channels_out", "fsdp"),
    # Axes that are never sharded: stacked layers, codes, classes, features of a head, pixels and positions, inputs of a
    # convolution.
    ("layers", None),
    ("codes", None),
    ("classes", None),
    ("qkv", None),
    ("head_dim", None),
    ("length", None),
    ("patch", None),
    ("channels_in", None),
    ("proj", None),
    ("norm", None),
)

_STACKED = ("layers", "qkv")  # axes along which a kernel stacks several matrices


def make_mesh(sizes: Mapping[str, int] | ConfigDict, devices: Sequence | None = None) -> Mesh:
    """Makes the mesh `("data", "fsdp", "tensor")`.

    Args:
      sizes: number of devices along each axis. One size may be -1, the remaining devices; the other sizes are then reduced
        to the number of devices, so a config for eight devices also runs on one.
      devices: devices of the mesh; None: all devices of all hosts.

    Raises ConfigError if the product of the sizes is not the number of devices. Axes have the type Auto: the compiler
    inserts collectives, as Linen's sharding constraints require.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(_arrange_devices(mesh_shape(sizes, len(devices)), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Mapping[str, int] | ConfigDict, count: int) -> tuple[int, int, int]:
    """Returns the shape of the mesh of `count` devices; arguments and errors are those of `make_mesh`."""
    shape = [sizes[axis] for axis in AXES]
    stated = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ConfigError(f"config.mesh ({stated}): sizes must be positive, at most one of them -1 (the remaining devices)")
    if -1 in shape and max(shape) > count:
        shape = [min(size, count) for size in shape]
        log.warning("config.mesh (%s) is reduced to %d device(s)", stated, count)
    known = math.prod(size for size in shape if size != -1)
    if count % known:
        raise ConfigError(f"config.mesh ({stated}) does not fit {count} device(s): {known} does not divide {count}")
    data, fsdp, tensor = (count // known if size == -1 else size for size in shape)
    if data * fsdp * tensor != count:
        raise ConfigError(
            f"config.mesh ({stated}) uses {data * fsdp * tensor} of {count} device(s): set one axis to -1 to use all of them"
        )
    return data, fsdp, tensor


def _arrange_devices(shape: Sequence[int], devices: Sequence) -> np.ndarray:
    """Arranges devices in an array of the mesh shape.

    Devices that are close in the network are neighbours along the last axes; several TPU slices lie along data.
    """
    slices = {getattr(device, "slice_index", 0) for device in devices} if devices[0].platform == "tpu" else {0}
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, *rest = shape
    if data % len(slices):
        raise ConfigError(
            f"config.mesh.data = {data} cannot be split over {len(slices)} slices, which should exchange only "
            f"gradients: it must be a multiple of {len(slices)}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // len(slices), *rest), (len(slices), 1, 1), devices, allow_split_physical_axes=True
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: first axis sharded over data and fsdp, replicated over tensor."""
    return NamedSharding(mesh, P(BATCH))


def host_rows(batch_sharding: NamedSharding, batch_size: int, process: int | None = None) -> np.ndarray:
    """Returns the indices of the batch rows on the devices of a host, in ascending order: int [rows].

    Args:
      process: index of the host; None: this host.

    The indices may be non-contiguous, since the mesh follows the network and not the process indices. Several hosts hold
    the same row if its replicas (along `tensor`) are on different hosts.
    """
    process = jax.process_index() if process is None else process
    is_local = np.zeros(batch_size, bool)
    for device, (rows,) in batch_sharding.devices_indices_map((batch_size,)).items():
        if device.process_index == process:
            is_local[rows] = True
    return np.flatnonzero(is_local)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a replicated array."""
    return NamedSharding(mesh, P())


def parts(mesh: AnyMesh) -> int:
    """Returns the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def largest(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Computes the maximum over all devices of an array with a batch sharding, even if its replicas differ."""
    return jax.shard_map(
        lambda x: jax.lax.pmax(jnp.max(x), AXES), mesh=mesh, in_specs=P(BATCH), out_specs=P(), check_vma=False
    )(x)


def check_batch(mesh: AnyMesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises ConfigError unless every micro-batch splits evenly over the devices."""
    count = parts(mesh) * accumulate
    if batch_size % count:
        micro = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        raise ConfigError(
            f"config.data.batch_size = {batch_size}{micro} cannot be split over data x fsdp = "
            f"{mesh.shape['data']} x {mesh.shape['fsdp']} devices: it must be a multiple of {count}"
        )


def split_batch(x: jax.Array, parts: int) -> jax.Array:
    """Splits a batch [B, …] into micro-batches [parts, B / parts, …].

    Micro-batch i has rows i, i + parts, …, so all rows stay on their device.
    """
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return _constrain(x, None, BATCH)


def join_batch(x: jax.Array) -> jax.Array:
    """Joins micro-batches in the original order of rows: the inverse of `split_batch`."""
    x = x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return _constrain(x, BATCH)


def _constrain(x: jax.Array, *axes: tuple[str, ...] | None) -> jax.Array:
    """Constrains the sharding of an array by the current mesh, if there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*map(_without_manual, axes)))


def _without_manual(axes: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Removes mesh axes that are manual, as in `map_over_data`, and over which the compiler splits nothing."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if axis not in manual) or None


def map_over_data(function: Callable, split, whole, key: jax.Array, out_specs):
    """Applies `function(split, whole, key)` to the examples of each index of the mesh axis `data` separately.

    Gradients with respect to `whole` are all-reduced over `data` once, after all of `function`. In a loop over
    micro-batches they are added up where they are computed; the compiler would all-reduce those of each micro-batch. The
    axes `fsdp` and `tensor` are left to the compiler.

    Args:
      split: tree of arrays whose first axis is the batch.
      whole: tree of arrays that are not sharded over `data`, such as parameters.
      key: random key; `function` gets a different one at each index.
      out_specs: tree of PartitionSpecs: P("data") for results with a batch axis, P() for those equal at all indices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return function(split, whole, key)

    @with_rules
    def function_of_index(split, whole, key):
        return function(split, whole, jax.random.fold_in(key, jax.lax.axis_index("data")))

    # Axes of size 1 belong to it, too: some kernels cannot be compiled where the compiler partitions some of the axes.
    axes = {"data", *(axis for axis, size in mesh.shape.items() if size == 1)}
    # check_vma=False: sums over "data" make results equal at all indices.
    mapped = jax.shard_map(
        function_of_index, in_specs=(P("data"), P(), P()), out_specs=out_specs, axis_names=axes, check_vma=False
    )
    return mapped(split, whole, key)


def mean_over_data(tree):
    """Averages arrays over the mesh axis `data` inside of `map_over_data`; elsewhere it is the identity."""
    return jax.lax.pmean(tree, "data") if _in_map_over_data() else tree


def max_over_data(x: jax.Array) -> jax.Array:
    """Computes the maximum over the mesh axis `data` inside of `map_over_data`; elsewhere it is the identity."""
    return jax.lax.pmax(x, "data") if _in_map_over_data() else x


def weighted_mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Computes the mean of x [B, …] with weights [B, …] >= 0 over the whole batch; 0 if all weights are 0.

    Inside of `map_over_data`, it returns this index's share, times the number of indices: their mean is the mean.
    """
    total, parts = jnp.sum(weights), 1
    if _in_map_over_data():
        total, parts = jax.lax.psum(total, "data"), jax.lax.axis_size("data")
    return parts * jnp.sum(x * weights) / jnp.where(total == 0, 1, total)


def _in_map_over_data() -> bool:
    return "data" in jax.sharding.get_abstract_mesh().manual_axes


def rows_per_device(mesh: AnyMesh, rows: int) -> int:
    """Returns the number of batch rows per device."""
    return rows if mesh.empty else rows // math.prod(mesh.shape[axis] for axis in BATCH)


def round_up(rows: int, shards: int) -> int:
    """Returns the smallest multiple of `shards` that is at least `rows`."""
    return -(-rows // shards) * shards


def parts_of(rows: int, max_rows: int) -> int:
    """Returns the smallest number of equal parts with at most `max_rows` rows each."""
    return next(parts for parts in range(-(-rows // max_rows), rows + 1) if rows % parts == 0)


def with_rules(function: Callable) -> Callable:
    """Wraps `function` to resolve logical sharding constraints by `RULES` during tracing."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with nn.logical_axis_rules([(name, _without_manual(axes)) for name, axes in RULES]):
            return function(*args, **kwargs)

    return wrapper


def is_box(x) -> bool:
    """Returns whether a leaf is a parameter with logical axis names."""
    return isinstance(x, nn.LogicallyPartitioned)


def unbox(tree):
    """Removes the boxes with logical axis names from a tree of parameters."""
    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)


def logical_axes(tree) -> dict[str, tuple[str | None, ...]]:
    """Returns the logical axis names of each parameter by path; all None for a leaf without a box."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box)
    return {path_name(path): tuple(x.names) if is_box(x) else (None,) * x.ndim for path, x in leaves}


def kernel_axes(names: Sequence[str | None]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the input and the output axes of a kernel from its logical axis names; None if it is no matrix.

    Axes that stack several matrices, such as layers, are neither.
    """
    axes = tuple(i for i, name in enumerate(names) if name not in _STACKED)
    if len(axes) < 2:
        return None
    inputs = axes[:1] if names[axes[0]] == "embed" else axes[:-1]
    return inputs, axes[len(inputs) :]


def spec(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, path: str = "") -> P:
    """Makes the PartitionSpec of an array from its logical axis names.

    A mesh axis shards at most one array axis, the first that maps to it. An axis whose length is not divisible by the
    mesh axis is not sharded, and a warning is logged. Raises ConfigError for a name that is not in `RULES`.
    """
    rules = dict(RULES)
    used_axes: set[str] = set()
    result: list[str | tuple[str, ...] | None] = []
    for name, length in zip(names, shape, strict=True):
        if name is not None and name not in rules:
            raise ConfigError(f"{path}: logical axis {name!r} is not in train_jax.sharding.RULES: {', '.join(rules)}")
        axis = rules[name] if name is not None else None
        axes = (axis,) if isinstance(axis, str) else (axis or ())
        if not axes or used_axes & set(axes):
            result.append(None)
        elif length % math.prod(mesh.shape[a] for a in axes):
            log.warning(
                "%s: axis %r of length %d is not divisible by the mesh's %s and is not sharded",
                path,
                name,
                length,
                axis,
            )
            result.append(None)
        else:
            used_axes |= set(axes)
            result.append(axis)
    return P(*result)


def shardings(boxed, mesh: Mesh):
    """Makes the shardings of a tree of boxed abstract arrays; leaves without axis names are replicated."""

    def make_sharding(path, x):
        if not is_box(x):
            return replicated(mesh)
        return NamedSharding(mesh, spec(x.names, x.value.shape, mesh, path_name(path)))

    return jax.tree_util.tree_map_with_path(make_sharding, boxed, is_leaf=is_box)


def like_params(tree, params, param_shardings, mesh: Mesh):
    """Makes the shardings of a tree with copies of the parameters, such as an optimiser state.

    A leaf with the shape of a parameter whose path ends in the parameter's path (a moment) is sharded like the parameter.
    All other leaves (counters, Adafactor's small row and column statistics) are replicated.
    """
    known = {
        tuple(map(str, path)): (x.shape, s)
        for (path, x), s in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings), strict=True
        )
    }

    def find_sharding(path, x):
        keys = tuple(map(str, path))
        for start in range(len(keys)):
            shape, sharding = known.get(keys[start:], (None, None))
            if sharding is not None and shape == x.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(find_sharding, tree)


def path_name(path) -> str:
    """Formats a key path as `player/module/kernel`, the form that configs use for parameters."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
