"""The stream of batches: a permutation each epoch, resumed exactly, the same on any number of hosts and workers.

Sources are lists in memory whose records hold their index: see toy_stream.py.
"""

import dataclasses
import itertools
import json
import threading

import numpy as np
import pytest
from toy_stream import assert_same, example, make_source, take

from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.shards import ShardShuffle
from train_jax.data.sources import Source
from train_jax.data.stream import BROKEN, TrainStream, check_broken, eval_batches


class Unreadable(list):
    """Records of which some cannot even be read, as those of a file that has gone."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if record["broken"]:
            raise BrokenSample(f"{record['id']} has gone")
        return record


def stream(source, *, batch_size=4, seed=0, rows=None, **options):
    rows = None if rows is None else np.array(rows)
    return TrainStream(source, example, batch_size=batch_size, seed=seed, rows=rows, **options)


def joined(batches: list[dict], name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in batches])


# ---------------------------------------------------------------------------------------------------------------------
# Order


def test_every_epoch_is_another_permutation():
    # Batches of 4 from 10 records: they run over the ends of epochs, so 5 batches are two epochs.
    epochs = joined(take(stream(make_source(10)), 20), "index").reshape(8, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_seeds_give_other_orders_and_the_same_seed_the_same():
    source = make_source(50)
    first, again, other = (take(stream(source, seed=seed), 10) for seed in (1, 1, 2))
    assert_same(first, again)
    assert (joined(first, "index") != joined(other, "index")).any()
    assert not np.isin(joined(first, "draw"), joined(other, "draw")).any()


def test_order_is_shuffled_over_the_whole_set():
    # The mean distance between the position in the epoch and in the set is a third of the set's size, give or take
    # 0.006 of it: the deviation of |U - V| is 1 / sqrt(18), over sqrt(2000).
    places = joined(take(stream(make_source(2000), batch_size=100), 20), "index")
    assert abs(np.abs(places - np.arange(2000)).mean() / 2000 - 1 / 3) < 0.02


def test_random_numbers_depend_on_seed_and_position_alone():
    source = make_source(12)
    reference = take(stream(source, batch_size=12), 4)
    draws = joined(reference, "draw")
    assert len(np.unique(draws)) == draws.size  # other numbers for other rows, also when a record comes again
    for options in ({"batch_size": 2}, {"batch_size": 6}):
        actual = take(stream(source, **options), 48 // options["batch_size"])
        np.testing.assert_array_equal(joined(actual, "draw"), draws)
    # Other records at the same positions draw the same numbers.
    renamed = Source("other", [{"id": "x", "index": 100 + n, "broken": False} for n in range(12)])
    np.testing.assert_array_equal(joined(take(stream(renamed, batch_size=12), 4), "draw"), draws)


def test_one_record_is_enough():
    batches = take(stream(make_source(1), batch_size=3), 2)
    assert joined(batches, "index").tolist() == [0] * 6


# The rows of a batch of 8 that each host makes: in the processes' order, in a TPU's, with replicas on two hosts.
LAYOUTS = {
    "processes": [range(4), range(4, 8)],
    "one-each": [[n] for n in range(8)],
    "tpu": [[0, 1, 4, 5], [2, 3, 6, 7]],
    "replicas": [range(4), range(4), range(4, 8), range(4, 8)],
}


def put_together(batches: list[dict], layout: list) -> dict:
    """The batch whose rows hosts made, each row where it belongs."""
    batch_of_8 = {}
    for batch, rows in zip(batches, layout, strict=True):
        for name, x in batch.items():
            batch_of_8.setdefault(name, np.zeros((8, *x.shape[1:]), x.dtype))[list(rows)] = x
    return batch_of_8


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_hosts_share_the_batches_of_one(layout):
    source = make_source(21, broken=(4,))
    expected = take(stream(source, batch_size=8), 12)
    parts = [take(stream(source, batch_size=8, rows=rows), 12) for rows in layout]
    assert_same([put_together(batches, layout) for batches in zip(*parts, strict=True)], expected)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_of_one(workers):
    source = make_source(5)
    expected = take(stream(source, batch_size=4), 3)
    ones = take(stream(source, batch_size=1, workers=workers), 12)
    np.testing.assert_array_equal(joined(ones, "draw"), joined(expected, "draw"))
    assert all(batch["index"].shape == (1,) for batch in ones)


def test_the_first_example_tells_the_shapes_and_nothing_is_drawn_for_it():
    read = []

    class Noted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    # Workers could not note anything here: that records are noted shows that none was started.
    iterator = stream(Source("noted", Noted(make_source(9).records)), batch_size=6, rows=range(3), workers=2)
    example = iterator.first_example()
    assert {name: (x.shape, x.dtype) for name, x in example.items()} == {
        "index": ((), np.int32),
        "draw": ((2,), np.float32),
        BROKEN: ((), np.int32),
    }
    assert len(read) == 1 and iterator.get_state() == {"examples": 0}
    for name, x in next(stream(make_source(9), batch_size=6)).items():
        np.testing.assert_array_equal(x[0], example[name])


# ---------------------------------------------------------------------------------------------------------------------
# Shards

SHARDS = np.array([0, 7, 7, 12, 30, 40])  # the second is empty


def in_shards(count: int = 40, broken: tuple[int, ...] = ()) -> Source:
    return dataclasses.replace(make_source(count, broken), shard_starts=SHARDS)


@pytest.mark.parametrize("buffer", [1, 6, 13, 40, 1000])
def test_shards_are_shuffled_and_records_within_buffers(buffer):
    order = ShardShuffle(SHARDS, buffer, seed=3)
    epochs = np.array([[order[40 * epoch + place] for place in range(40)] for epoch in range(6)])
    assert len({tuple(epoch) for epoch in epochs}) > (1 if buffer == 1 else 5)  # 24 orders of shards, or more
    shards = [list(range(start, end)) for start, end in itertools.pairwise(SHARDS)]
    orders = [sum(arranged, []) for arranged in itertools.permutations(shards)]

    def buffers(records):
        return [sorted(records[start : start + buffer]) for start in range(0, 40, buffer)]

    for epoch in epochs:
        assert buffers(epoch.tolist()) in map(buffers, orders)
        if buffer == 1000:  # all records: the mean distance of permutations is a third, give or take 0.04
            assert 0.2 < np.abs(epoch - np.arange(40)).mean() / 40 < 0.46


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_shards_resumes_exactly_on_other_hosts(workers):
    source = in_shards(broken=(4,))
    reference = take(stream(source, shuffle_buffer=10), 30)
    order = ShardShuffle(SHARDS, 10, seed=0)
    expected = [5 if order[place] == 4 else order[place] for place in range(120)]
    assert joined(reference, "index").tolist() == expected
    layout = LAYOUTS["tpu"][: 1 if workers else 2]
    parts = [stream(source, batch_size=8, rows=rows, shuffle_buffer=10, workers=workers, threads=3) for rows in layout]
    for rows, part in zip(layout, parts, strict=True):
        part.set_state({"examples": 44})
        actual = joined(take(part, 6), "index").tolist()
        assert actual == [expected[44 + 8 * batch + row] for batch in range(6) for row in rows]
    assert parts[0].get_state() == {"examples": 44 + 48}


def test_only_tars_have_shards():
    with pytest.raises(DataError, match="shuffle_buffer = 10: fake:train does not consist of tars"):
        stream(make_source(40), shuffle_buffer=10)


# ---------------------------------------------------------------------------------------------------------------------
# State


@pytest.mark.parametrize("drawn", [0, 1, 5])
def test_state_resumes_exactly(drawn):
    source = make_source(13, broken=(3,))
    iterator = stream(source)
    take(iterator, drawn)
    state = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint keeps it
    rest = take(iterator, 9)
    fresh = stream(source)
    take(fresh, 2)
    fresh.set_state(state)
    assert_same(take(fresh, 9), rest)
    iterator.set_state(state)
    assert_same(take(iterator, 9), rest)


def test_state_counts_for_other_hosts_and_batch_sizes():
    source = make_source(13)
    single = stream(source, batch_size=4)
    take(single, 5)
    assert single.get_state() == {"examples": 20}
    layout = LAYOUTS["tpu"]
    parts = [stream(source, batch_size=8, rows=rows) for rows in layout]
    for part in parts:
        part.set_state(single.get_state())
    batches = [put_together(rows, layout) for rows in zip(*(take(part, 3) for part in parts), strict=True)]
    np.testing.assert_array_equal(joined(batches, "draw"), joined(take(single, 6), "draw"))


# ---------------------------------------------------------------------------------------------------------------------
# Broken samples


def next_that_works(index: int, count: int, broken: set[int]) -> tuple[int, int]:
    """Where a row's example comes from in the end, and how many were passed over."""
    passed = 0
    while index in broken:
        index, passed = (index + 1) % count, passed + 1
    return index, passed


@pytest.mark.parametrize("records", [list, Unreadable], ids=["when-made", "when-read"])
def test_broken_samples_are_replaced_by_the_next_and_counted(records):
    broken = {2, 6, 7, 12}  # the last has the first as its next
    intact = make_source(13)
    damaged = Source("damaged", records(make_source(13, tuple(broken)).records))
    unharmed, batches = (take(stream(source), 13) for source in (intact, damaged))  # four epochs
    expected = [next_that_works(index, 13, broken) for index in joined(unharmed, "index")]
    np.testing.assert_array_equal(np.stack([joined(batches, "index"), joined(batches, BROKEN)], -1), expected)
    assert joined(batches, BROKEN).dtype == np.int32
    assert joined(batches, BROKEN).sum() == 4 * (1 + 2 + 1 + 1)  # 6 passes over 7 too
    kept = joined(batches, BROKEN) == 0
    np.testing.assert_array_equal(joined(batches, "draw")[kept], joined(unharmed, "draw")[kept])


@pytest.mark.parametrize("count", [5, 300])
def test_nothing_but_broken_samples(count):
    source = make_source(count, tuple(range(count)))
    tried = min(count, 100)
    with pytest.raises(DataError, match=rf"fake:train: {tried} broken samples in a row; the first: r\d+: no picture;"):
        next(stream(source))


@pytest.mark.parametrize(
    "broken, examples, most, words",
    [
        # The first thousand are taken together.
        (51, 200, 0.05, "51 of 251 samples read were broken.*max_broken = 5.0%"),
        (50, 200, 0.05, None),
        (500, 1500, 0.24, "500 of 2000 samples.*max_broken = 24.0%"),
        (500, 1500, 0.25, None),
        (1, 10, 0.0, "1 of 11"),
        (0, 10, 0.0, None),
    ],
)
def test_too_many_broken_samples(broken, examples, most, words):
    if words is None:
        return check_broken(broken, examples, most)
    with pytest.raises(DataError, match=words):
        check_broken(broken, examples, most)


# ---------------------------------------------------------------------------------------------------------------------
# Threads and workers


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("batch_size", [1, 24, 36, 72])
def test_batches_are_joined_from_what_threads_make(threads, batch_size):
    # Threads make 16 examples at a time, so these batches begin and end in the middle of what a thread makes.
    source = make_source(50, broken=(7,))
    reference = take(stream(source, batch_size=4), 36)
    actual = take(stream(source, batch_size=batch_size, threads=threads), 144 // batch_size)
    for name in reference[0]:
        np.testing.assert_array_equal(joined(actual, name), joined(reference, name))
        assert {batch[name].shape for batch in actual} == {(batch_size, *reference[0][name].shape[1:])}


class Meeting:
    """Makes examples only if `count` threads make some at the same time."""

    def __init__(self, count: int):
        self._barrier = threading.Barrier(count)
        self._met = threading.local()

    def __call__(self, record, rng):
        if not hasattr(self._met, "done"):
            self._barrier.wait(timeout=60)
            self._met.done = True
        return {"index": np.int32(record["index"])}


def test_one_batch_is_made_by_all_threads():
    batches = TrainStream(make_source(100), Meeting(4), batch_size=64, seed=0, threads=4)
    assert next(batches)["index"].shape == (64,)
    (batch, _), *_ = eval_batches(make_source(64), Meeting(4), batch_size=64, threads=4)
    assert batch["index"].tolist() == list(range(64))


def test_evaluations_make_the_next_batch_while_the_device_has_the_last():
    ready = threading.Event()

    def noted(record, rng):
        if record["index"] == 31:
            ready.set()
        return {"index": np.int32(record["index"])}

    batches = eval_batches(make_source(64), noted, batch_size=16, threads=2)
    next(batches)
    assert ready.wait(timeout=60)  # the last of the second batch, for which nobody has asked yet


def test_workers_give_the_same_stream():
    source = make_source(13, broken=(3,))
    expected = take(stream(source), 9)
    # A state passes between numbers of workers.
    plain, two = stream(source), stream(source, threads=3, workers=2)
    take(plain, 2)
    two.set_state(plain.get_state())
    assert_same(take(two, 4), expected[2:6])
    plain.set_state(two.get_state())
    assert_same(take(plain, 3), expected[6:])


def test_errors_come_back_from_workers():
    source = make_source(5, tuple(range(5)))
    with pytest.raises(DataError, match="fake:train: 5 broken samples in a row"):
        next(stream(source, workers=1))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_eval_batches_are_every_record_once_and_padding(count, layout):
    source = make_source(count)
    parts = [list(eval_batches(source, example, batch_size=8, rows=np.array(rows))) for rows in layout]
    assert {len(part) for part in parts} == {-(-count // 8)}
    for number, batches in enumerate(zip(*parts, strict=True)):
        expected = put_together([batch | {"mask": mask} for batch, mask in batches], layout)
        real = min(8, count - 8 * number)
        assert expected["mask"].tolist() == [True] * real + [False] * (8 - real) and expected["mask"].dtype == bool
        assert expected["index"].tolist() == [*range(8 * number, 8 * number + real), *[count - 1] * (8 - real)]


def test_eval_examples_draw_by_index():
    def draws(batch_size):
        batches = eval_batches(make_source(6), example, batch_size=batch_size)
        return np.concatenate([batch["draw"][mask] for batch, mask in batches])

    np.testing.assert_array_equal(draws(2), draws(4))
    assert len(np.unique(draws(6))) == 12


@pytest.mark.parametrize("records", [list, Unreadable], ids=["when-made", "when-read"])
def test_a_broken_sample_ends_an_evaluation(records):
    source = Source("damaged", records(make_source(6, (4,)).records))
    batches = eval_batches(source, example, batch_size=2)
    take(batches, 2)
    with pytest.raises(DataError, match="a broken sample in an evaluation: r4"):
        next(batches)
