"""Seeds, sizes of programs, and windows over large images."""

import numpy as np
import pytest

from vqgan_jax.stage2 import sampling


def test_a_repeated_condition_continues_its_sample_indices(conditions):
    condition = conditions["class"]
    seeds = sampling.make_seeds(condition, [3, None, 3], sampling.first_samples([3, None, 3], 2), 2, 7)
    assert seeds.dtype == np.uint32 and (seeds[..., 0] == 7).all()
    assert seeds[..., 1].tolist() == [[condition.seed(label)] * 2 for label in (3, None, 3)]
    assert seeds[..., 2].tolist() == [[0, 1], [0, 1], [2, 3]]


@pytest.mark.parametrize(
    "conditions, n, batch_size", [(1, 1, 1), (5, 3, 7), (5, 3, 1), (9, 1, 4), (2, 64, 16), (40, 5, 64)]
)
def test_padded_sizes_hold_every_batch(conditions, n, batch_size):
    rows, samples = sampling.padded_sizes(conditions, n, batch_size)
    which = np.repeat(np.arange(conditions), n)
    batches = [which[start : start + batch_size] for start in range(0, len(which), batch_size)]
    assert max(map(len, batches)) <= samples <= batch_size
    assert max(len(set(batch)) for batch in batches) <= rows < 2 * min(conditions, batch_size + 1)


@pytest.mark.parametrize(
    "conditions, n, batch_size, rows, expected",
    [(1, 9, 64, 16, 16), (3, 9, 64, 64, 1), (3, 12, 64, 64, 4), (3, 32, 64, 16, 16), (3, 4, 6, 6, 2), (30, 64, 64, 64, 64)],
)
def test_samples_of_a_group_have_one_condition(conditions, n, batch_size, rows, expected):
    group = sampling.group_size(conditions, n, batch_size, rows)
    assert group == expected and rows % group == 0
    which = np.repeat(np.arange(conditions), n)
    for start in range(0, len(which), batch_size):
        batch = which[start : start + batch_size]
        batch = np.pad(batch, (0, -len(batch) % group), mode="edge").reshape(-1, group)
        assert (batch == batch[:, :1]).all()


@pytest.mark.parametrize("length", [1, 6, 16, 256])
def test_segments_end_after_their_codes(length):
    ends = [sampling.segment_end(stop, length) for stop in range(1, length + 1)]
    assert all(end >= stop for stop, end in enumerate(ends, 1)) and ends[-1] == length
    assert len(set(ends)) <= sampling.SEGMENTS and ends == sorted(ends)


@pytest.mark.parametrize("size, stride", [((8, 8), 4), ((8, 13), 4), ((21, 8), 1), ((11, 14), 3), ((16, 16), 8)])
def test_windows_sample_every_code_once_after_its_context(size, stride):
    done = np.zeros(size, int)
    for top, left, prefix, known in sampling.iterate_windows(size, (8, 8), stride, done > 0):
        part = done[top : top + 8, left : left + 8]
        assert prefix % 8 == 0 and part.reshape(-1)[:prefix].all()
        np.testing.assert_array_equal(known, part.reshape(-1)[prefix:] > 0)
        fresh = part == 0
        # What is sampled lies below or right of what is known: rows of a window end alike.
        assert (np.diff(fresh.astype(int), axis=1) >= 0).all() and (np.diff(fresh.astype(int), axis=0) >= 0).all()
        part += fresh
    assert (done == 1).all()


def test_fixed_codes_are_known_from_the_first_window_on():
    known = np.zeros((6, 4), bool)
    known[:3], known[4, 1] = True, True
    first, second = sampling.iterate_windows((6, 4), (4, 4), 2, known)
    assert (first.prefix, second.prefix) == (12, 8), "complete rows"
    assert not first.known.any() and second.known.tolist() == [False, True, False, False, *[False] * 4]
    assert known.sum() == 13, "the caller's array stays as it is"
    (window,) = sampling.iterate_windows((4, 4), (4, 4), 2, np.ones((4, 4), bool))
    assert window.prefix == 16 and not len(window.known)
