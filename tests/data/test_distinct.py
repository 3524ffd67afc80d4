"""Distinct records of mixtures, against a look at every record."""

import numpy as np
import pytest

from train_jax.data.distinct import find_distinct
from train_jax.data.mixture import Mixed
from train_jax.data.sources import Source, select
from train_jax.data.splits import Selection
from train_jax.data.subset import Subset


def make_source(name: str, count: int) -> Source:
    return Source(name, [{"id": f"{name}{i}", "image": b"", "captions": [], "even": i % 2} for i in range(count)])


A, B = make_source("a", 7), make_source("b", 3)
EVEN = select(A, ("even=0",))


def mix(*parts: Source, weights=None) -> Source:
    return Source("mixture", Mixed(parts, weights or [1] * len(parts)))


@pytest.mark.parametrize(
    "source, count, name",
    [
        (mix(A, EVEN), 7, "a"),  # all are A's
        (mix(EVEN, A), 7, "a"),
        (mix(A, B), 10, "distinct records of mixture"),
        (mix(B, A, EVEN, weights=[1, 2, 3]), 10, "distinct records of mixture"),
        (mix(EVEN, B, weights=[1, 5]), 7, "distinct records of mixture"),
        (mix(EVEN, select(A, ("even=1",)), weights=[4, 3]), 7, None),  # each once
        (select(mix(A, EVEN), ("even=1",)), 3, None),
        (select(mix(A, EVEN), ("even=0",)), 4, "distinct records of mixture with even=0"),
        (mix(mix(A, B), B), 10, "distinct records of mixture"),
    ],
)
def test_distinct_records_are_each_there_once(source, count, name):
    distinct, rows = find_distinct(source)
    assert len(distinct) == count and distinct.name == (name or source.name)
    assert sorted(record["id"] for record in distinct) == sorted({record["id"] for record in source})
    if name is None:
        assert distinct is source and rows is None
    else:
        assert [distinct[row]["id"] for row in rows.tolist()] == [record["id"] for record in source]


@pytest.mark.parametrize("source", [A, EVEN, Source("c", Subset(A, range(2, 5)))])
def test_other_sources_are_their_own(source):
    distinct, rows = find_distinct(source)
    assert distinct is source and rows is None


def test_a_selection_is_an_array_of_its_indices():
    mask = np.random.default_rng(0).random(20_000) < 0.3
    selection = Selection(mask)
    np.testing.assert_array_equal(np.asarray(selection), np.flatnonzero(mask))
    assert np.asarray(selection)[100] == selection[100]
