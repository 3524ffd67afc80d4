"""From the stream to the devices: batches that are sent ahead, and where their rows lie."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toy_stream import assert_same, example, make_source, take

from train_jax import feed
from train_jax.data.errors import DataError
from train_jax.data.stream import BROKEN, TrainStream
from train_jax.feed import Prefetch


def stream(count: int = 13, broken: tuple[int, ...] = (3,), kind=TrainStream) -> TrainStream:
    """Batches of 4 records; `broken` ones are replaced."""
    return kind(make_source(count, broken), example, batch_size=4, seed=0)


def send(batch: dict) -> dict[str, jax.Array]:
    return jax.device_put(batch)


def test_shapes_are_those_of_a_batch_over_all_hosts():
    shapes = feed.batch_shapes(stream(), 6)
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        "index": ((6,), np.int32),
        "draw": ((6, 2), np.float32),
        BROKEN: ((6,), np.int32),
    }


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_hands_out_the_same_batches(depth):
    assert_same(take(Prefetch(stream(), send, depth=depth), 9), take(stream(), 9))


@pytest.mark.parametrize("drawn", [0, 1, 5])
def test_prefetch_resumes_after_the_batch_last_handed_out(drawn):
    plain, ahead = stream(), Prefetch(stream(), send, depth=2)
    take(plain, drawn)
    take(ahead, drawn)
    # What is on its way does not count.
    assert ahead.get_state() == plain.get_state()
    state = json.loads(json.dumps(ahead.get_state()))
    expected = take(plain, 8)
    resumed = stream()
    resumed.set_state(state)
    fresh = Prefetch(resumed, send, depth=2)
    assert fresh.get_state() == state
    assert_same(take(fresh, 8), expected)
    assert_same(take(ahead, 8), expected)  # taking a state disturbs nothing


def test_prefetch_sends_batches_ahead():
    sent = []

    def noted(batch):
        sent.append(send(batch))
        return sent[-1]

    batches = Prefetch(stream(), noted, depth=3)
    assert not sent
    first = next(batches)
    assert len(sent) == 3 and first is sent[0]
    assert next(batches) is sent[1] and len(sent) == 4


def test_nothing_but_broken_samples_is_an_error():
    with pytest.raises(DataError, match="broken samples in a row"):
        next(Prefetch(stream(5, tuple(range(5))), send))


def test_an_error_is_known_before_the_batches_ahead_are_used_up():
    class Ending(TrainStream):
        def __next__(self):
            if self.get_state() == {"examples": 16}:
                raise DataError("gone")
            return super().__next__()

    batches = Prefetch(stream(kind=Ending), send, depth=3)
    take(batches, 1)
    assert batches.error is None  # batches 2 and 3 are here
    take(batches, 1)
    assert batches.error is None  # batch 4 is
    take(batches, 1)
    assert isinstance(batches.error, DataError)  # batch 5 is not, and 4 is still to come
    take(batches, 1)
    with pytest.raises(DataError, match="gone"):
        next(batches)


def test_to_device_shards_rows():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("data"))
    batch = {"image": np.arange(8 * 6, dtype=np.uint8).reshape(8, 6), "label": np.arange(8, dtype=np.int32)}
    actual = feed.to_device(batch, sharding)
    for name, array in batch.items():
        assert actual[name].sharding.is_equivalent_to(sharding, array.ndim) and actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)
        for shard in actual[name].addressable_shards:
            assert shard.data.shape[0] == 2
            np.testing.assert_array_equal(shard.data, array[shard.index])
