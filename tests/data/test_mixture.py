"""Mixtures: shares by weight, every record there, errors named."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from train_jax.data.errors import DataError
from train_jax.data.mixture import Mixed, parse
from train_jax.data.sources import open_source


@pytest.mark.parametrize("weights", [(1e-300, 1e300), (1.0, 1e17)])
def test_weights_too_far_apart_are_refused(weights):
    with pytest.raises(DataError, match="are too far apart"):
        Mixed([range(3), range(3)], weights)
    with pytest.raises(DataError, match="with a weight above 0"):
        parse(f"{'9' * 400} a | b")


def test_shares_follow_the_weights_and_every_record_occurs():
    a, b, c = [("a", i) for i in range(10)], [("b", i) for i in range(100)], [("c", i) for i in range(7)]
    mixed = Mixed([a, b, c], [3, 5, 2])
    counts = collections.Counter(record[0] for record in mixed)
    assert counts == {"a": 60, "b": 100, "c": 40} and len(mixed) == 200
    assert set(mixed) == set(a + b + c)
    assert collections.Counter(mixed)["b", 5] == 1, "the one that is largest for its weight occurs once"
    with pytest.raises(IndexError):
        mixed[200]


@pytest.mark.parametrize("weights", [(1, 1), (0.1, 0.7), (1 / 3, 1 / 7)])
def test_rounding_adds_no_record(weights):
    mixed = Mixed([range(30), range(70)], weights)
    counts = np.array(mixed.counts)
    assert np.all(counts >= (30, 70)) and (counts == (30, 70)).any()
    np.testing.assert_allclose(counts / counts.sum(), np.array(weights) / sum(weights), atol=1 / 70)


def test_names():
    assert parse("3 shapes/64 | 0.5 folder:/a b") == [(3, "shapes/64"), (0.5, "folder:/a b")]
    assert parse("digits|shapes") == [(1, "digits"), (1, "shapes")]
    for wrong in ("shapes |", "0 shapes | digits", " | "):
        with pytest.raises(DataError, match="WEIGHT SOURCE"):
            parse(wrong)


def test_a_mixture_is_a_source(tmp_path):
    for name, count in (("one", 2), ("two", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
        rows = [json.dumps({"file": f"{n}.png", "caption": name}) for n in range(count)]
        (tmp_path / name / "captions.jsonl").write_text("\n".join(rows))
    source = open_source(f"2 folder:{tmp_path}/one | 1 folder:{tmp_path}/two", "train")
    assert collections.Counter(record["captions"][0] for record in source) == {"one": 8, "two": 4}
    assert source.label_names is None and source.is_true is None
    with pytest.raises(DataError, match="there is no source 'nowhere'"):
        open_source(f"folder:{tmp_path}/one | nowhere", "train")
