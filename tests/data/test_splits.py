"""Splits by slices: every index in one split, and the splits of lists that NumPy would give."""

import numpy as np
import pytest

from train_jax.data import splits


@pytest.mark.parametrize("count", [1, 7, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize(
    "split, bounds", [("all[:90%]", (0.0, 0.9)), ("train[90%:]", (0.9, 1.0)), ("all[25%:50%]", (0.25, 0.5))]
)
def test_slices_are_those_of_a_shuffled_list(count, split, bounds):
    start, end = (round(count * share) for share in bounds)
    expected = np.sort(np.random.default_rng(0).permutation(count)[start:end])
    selected = splits.select(count, split, "source")
    assert len(selected) == len(expected)
    np.testing.assert_array_equal([selected[index] for index in range(len(expected))], expected)
    ends = np.array([0, 1, count // 3, count - 1, count])
    np.testing.assert_array_equal(splits.ranks(selected, ends), np.searchsorted(expected, ends))


@pytest.mark.parametrize("split", ["all", "train", "all[:]", "all[:100%]", "train[0:]"])
def test_whole_splits_need_no_list(split):
    assert splits.select(10**12, split, "source") == range(10**12)


def test_a_selection_takes_a_bit_for_each_item():
    selected = splits.select(10**6, "all[1%:]", "source")
    assert selected._bits.nbytes + selected._counts.nbytes < 10**6 / 8 * 1.1
    with pytest.raises(IndexError):
        selected[990_000]
    assert selected[-1] == max(selected[index] for index in (989_998, 989_999))
