"""Records in memory that hold their index, so that what a batch should hold can be worked out by hand."""

import itertools

import numpy as np

from train_jax.data.errors import BrokenSample
from train_jax.data.sources import Source
from train_jax.data.stream import BROKEN


def make_source(count: int, broken: tuple[int, ...] = ()) -> Source:
    """Records with their index; `broken` ones cannot be made into examples."""
    return Source("fake:train", [{"id": f"r{n}", "index": n, "broken": n in broken} for n in range(count)])


def example(record: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    draw = rng.random(2, np.float32)  # also for broken records, so that other rows would show if it mattered
    if record["broken"]:
        raise BrokenSample("no picture")
    return {"index": np.int32(record["index"]), "draw": draw}


def take(iterator, count: int) -> list[dict]:
    return list(itertools.islice(iterator, count))


def assert_same(actual: list[dict], expected: list[dict]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert set(a) == set(b) == {"index", "draw", BROKEN}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
