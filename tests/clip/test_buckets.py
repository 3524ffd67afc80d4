"""Texts sorted and cut by length: what a causal tower reads stays."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import buckets
from train_jax import sharding


def test_micro_batches_have_texts_of_similar_length():
    ends = jnp.asarray([9, 1, 5, 3, 8, 2, 7, 4, 6, 0, 11, 10])
    sort, unsort = buckets.sort_by_length(ends, 3)
    micro_batches = sharding.split_batch(sort(ends), 3)
    assert [sorted(x) for x in micro_batches.tolist()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    rows = jnp.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(unsort(sort(rows)), rows)


@pytest.mark.parametrize("end, length", [(0, 4), (3, 4), (4, 6), (5, 6), (6, 10), (9, 10)])
def test_texts_are_cut_to_the_shortest_length_that_holds_them(end, length):
    def encode(ids):
        return jnp.full(len(ids), ids.shape[1])

    ends = jnp.asarray([0, end])
    assert buckets.encode_at_length(encode, jnp.zeros((2, 10), int), ends, (6, 4, 12)).tolist() == [length] * 2
    assert buckets.encode_at_length(encode, jnp.zeros((2, 10), int), ends, ()).tolist() == [10] * 2
