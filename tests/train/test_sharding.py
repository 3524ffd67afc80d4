"""The mesh from config, the table of axis names, and what happens when sizes do not fit."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nn_jax import layers
from train_jax import sharding
from train_jax.errors import ConfigError


def mesh(data=2, fsdp=2, tensor=2):
    return sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})


def test_minus_one_is_the_remaining_devices():
    assert dict(mesh(-1, 2, 1).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(mesh(1, -1, 4).shape) == {"data": 1, "fsdp": 2, "tensor": 4}


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((3, 1, 1), "3 does not divide 8"),
        ((-1, -1, 1), "at most one"),
        ((2, 2, 1), "uses 4 of 8"),
        ((0, 1, 1), "positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, words):
    with pytest.raises(ConfigError, match=words):
        mesh(*sizes)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_mesh_for_more_devices_is_reduced_to_those_there_are(count, caplog):
    sizes = {"data": -1, "fsdp": 8, "tensor": 1}
    reduced = sharding.make_mesh(sizes, jax.devices()[:count])
    assert dict(reduced.shape) == {"data": 1, "fsdp": count, "tensor": 1} and "reduced" in caplog.text
    with pytest.raises(ConfigError, match="8 does not divide"):
        sharding.make_mesh(sizes | {"data": 1}, jax.devices()[:count])


def test_a_batch_is_cut_into_as_few_equal_parts_as_may_be():
    for rows in range(1, 40):
        for max_rows in range(1, 50):
            sizes = [size for size in range(1, max_rows + 1) if rows % size == 0]  # by hand: the largest divisor
            assert sharding.parts_of(rows, max_rows) == rows // max(sizes)


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    sharding.check_batch(mesh(2, 2, 2), 12)
    with pytest.raises(ConfigError, match="multiple of 4"):
        sharding.check_batch(mesh(2, 2, 2), 10)
    with pytest.raises(ConfigError, match="multiple of 12"):
        sharding.check_batch(mesh(2, 2, 2), 16, accumulate=3)


def test_spec_of_a_parameter():
    m = mesh()
    assert sharding.spec(("embed", "mlp"), (8, 16), m) == P("fsdp", "tensor")
    assert sharding.spec(("layers", "heads", "head_dim", "embed"), (3, 4, 5, 8), m) == P(None, "tensor", None, "fsdp")
    assert sharding.spec(("embed", "embed"), (8, 8), m) == P("fsdp", None), "an axis of the mesh serves once"


def test_an_axis_that_does_not_divide_is_not_sharded_and_is_logged(caplog):
    assert sharding.spec(("embed", "mlp"), (7, 16), mesh(), "clip/kernel") == P(None, "tensor")
    assert "clip/kernel" in caplog.text and "length 7" in caplog.text


def test_an_unknown_axis_name_is_an_error():
    with pytest.raises(ConfigError, match="'wdith' is not in"):
        sharding.spec(("wdith",), (8,), mesh(), "clip/kernel")


def test_moments_are_sharded_like_their_parameter_and_factored_ones_are_replicated():
    params = {"clip": {"kernel": jnp.zeros((256, 256)), "bias": jnp.zeros((256,))}}
    m = mesh()
    split = {"clip": {"kernel": jax.NamedSharding(m, P("fsdp", "tensor")), "bias": jax.NamedSharding(m, P("tensor"))}}
    actual = sharding.like_params(jax.eval_shape(optax.adam(1e-3).init, params), params, split, m)
    assert actual[0].mu == split and actual[0].nu == split
    assert actual[0].count.spec == P()
    factored = sharding.like_params(jax.eval_shape(optax.adafactor(1e-3).init, params), params, split, m)
    by_shape = {}
    for leaf, s in zip(
        jax.tree.leaves(jax.eval_shape(optax.adafactor(1e-3).init, params)), jax.tree.leaves(factored), strict=True
    ):
        by_shape.setdefault(leaf.shape, set()).add(s.spec)
    assert by_shape[(256,)] >= {P()}


def test_global_batch_is_split_over_data_and_fsdp():
    m = mesh()
    x = jax.device_put(np.arange(16.0).reshape(8, 2), sharding.batch_sharding(m))
    assert x.sharding.shard_shape(x.shape) == (2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# TPU slices: devices that are not here


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the layout of a mesh asks of a device."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    device_kind: str
    slice_index: int = 0
    platform: str = "tpu"
    core_on_chip: int = 0


def tpu(kind, shape, slices=1):
    """The chips of TPU slices; a host has 2 x 2 of them."""
    chips = []
    for number in range(slices):
        for z, y, x in itertools.product(*(range(size) for size in reversed(shape))):
            hosts = (x // 2, y // 2, z)
            columns, rows = shape[0] // 2, shape[1] // 2
            host = hosts[0] + columns * (hosts[1] + rows * hosts[2])
            chips.append(Chip(len(chips), (x, y, z), number * columns * rows * shape[2] + host, kind, number))
    return chips


SLICES = {
    "v5e:4x4": tpu("TPU v5 lite", (4, 4, 1)),
    "v5p:4x4x4": tpu("TPU v5", (4, 4, 4)),
    "v6e:4x4": tpu("TPU v6 lite", (4, 4, 1)),
}


@pytest.mark.parametrize("sizes", [(-1, 1, 1), (-1, 8, 1), (-1, 2, 2), (-1, 1, 4), (-1, 1, 8)])
@pytest.mark.parametrize("name", SLICES)
def test_every_host_makes_the_rows_of_its_own_chips(name, sizes):
    chips = SLICES[name]
    m = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), chips)
    assert set(m.devices.flat) == set(chips) and m.axis_types == (jax.sharding.AxisType.Auto,) * 3
    data, fsdp, _ = m.devices.shape
    of_host = {chip.process_index: set() for chip in chips}
    for (i, j, _), chip in np.ndenumerate(m.devices):  # a batch of three rows a part, dealt out by hand
        of_host[chip.process_index] |= {3 * (i * fsdp + j) + row for row in range(3)}
    for host, rows in of_host.items():
        actual = sharding.host_rows(sharding.batch_sharding(m), 3 * data * fsdp, host)
        assert actual.tolist() == sorted(rows)


def test_a_host_of_a_tpu_slice_holds_rows_that_are_not_contiguous():
    m = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, SLICES["v5e:4x4"])
    rows = sharding.host_rows(sharding.batch_sharding(m), 16, 0)
    assert len(rows) == 4 and rows.max() - rows.min() > 3, "or the tests of evaluations prove nothing"


def test_data_goes_over_the_network_between_slices():
    chips = tpu("TPU v5 lite", (4, 4, 1), slices=2)
    m = sharding.make_mesh({"data": 8, "fsdp": 2, "tensor": 2}, chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(m.devices)
    assert (slices[:4] == 0).all() and (slices[4:] == 1).all()
    with pytest.raises(ConfigError, match="config.mesh.data = 1 .* 2 slices.*multiple of 2"):
        sharding.make_mesh({"data": 1, "fsdp": 32, "tensor": 1}, chips)


def test_largest_is_the_maximum_over_devices_also_where_replicas_differ():
    m = mesh(2, 2, 2)
    split = sharding.batch_sharding(m)
    for loud in m.devices.flat:
        parts = [jax.device_put(jnp.full((1,), int(device == loud), jnp.int32), device) for device in m.devices.flat]
        x = jax.make_array_from_single_device_arrays((4,), split, parts)
        assert int(jax.jit(lambda x: sharding.largest(x, m), in_shardings=split)(x)) == 1


def test_data_indices_draw_different_numbers_and_share_their_means():
    m = mesh(4, 2, 1)
    x, weights = jnp.arange(16.0).reshape(16, 1) ** 2, jnp.arange(16)[:, None] % 3

    def share(split, whole, key):
        x, weights = split
        noise = jnp.full((len(x),), jax.random.uniform(key))
        return noise, sharding.mean_over_data((sharding.weighted_mean(x, weights), jnp.mean(x + whole)))

    def run(x, weights):
        return sharding.map_over_data(share, (x, weights), jnp.ones(()), jax.random.key(0), (P("data"), P()))

    with jax.set_mesh(m):
        noise, means = jax.jit(run, in_shardings=sharding.batch_sharding(m))(x, weights)
    assert len(set(noise.tolist())) == 4 and noise[0] == noise[3]
    for expected in (means, run(x, weights)[1]):
        np.testing.assert_allclose(expected, [np.average(x, weights=weights), np.mean(x) + 1], rtol=1e-6)
    assert sharding.weighted_mean(x, 0 * weights) == 0


def test_embeddings_are_looked_up_without_replicating_the_batch(capfd):
    m = mesh(2, 4, 1)
    by_width, by_example = NamedSharding(m, P(None, "fsdp")), sharding.batch_sharding(m)

    @sharding.with_rules
    def loss(table, ids):
        x = nn.with_logical_constraint(layers.embedding_lookup(table, ids), ("batch", None, None))
        return jnp.sum(jnp.sin(x))

    with jax.set_mesh(m):
        gradient = jax.jit(jax.grad(loss), in_shardings=(by_width, by_example), out_shardings=by_width)
        shapes = jax.ShapeDtypeStruct((40, 32), jnp.float32), jax.ShapeDtypeStruct((16, 24), jnp.int32)
        gradient.lower(*shapes).compile()
    assert "full rematerialization" not in capfd.readouterr().err  # the partitioner's own complaint
