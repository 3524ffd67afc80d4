"""Embeddings of a collection on disk: those of the image tower, not normalised; their mean and covariance.

How files are computed in parts, resumed and checked: tests/vqgan/test_codes.py.
"""

import pickle

import numpy as np
import pytest

from clip_jax.embeddings import mean_and_covariance, with_embeddings
from train_jax import precompute
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.images import decode
from train_jax.data.sources import Source
from train_jax.datasets.shapes.render import png

PICTURES = [png(x) for x in np.random.default_rng(0).integers(0, 256, (9, 20, 16, 3), np.uint8)]
RECORDS = [{"image": x, "id": str(i), "captions": ["a"]} for i, x in enumerate(PICTURES)]
RECORDS[4] = {"image": b"none", "id": "four", "captions": ["b"]}


@pytest.fixture
def records(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(precompute, "_PART", 4)
    return with_embeddings(clip, Source("s", RECORDS), tmp_path)


def test_a_record_has_the_embedding_of_its_image(clip, records, tmp_path):
    readable = [i for i in range(9) if i != 4]
    features = clip.encode_image([decode(RECORDS[i]["image"]) for i in readable])
    actual = np.stack([records[i]["embedding"] for i in readable])
    assert actual.dtype == np.float32 and records.arrays.dtype == np.float32
    lengths = np.linalg.norm(actual, axis=1, keepdims=True)
    assert abs(lengths - 1).max() > 0.1, "not of unit length"
    np.testing.assert_allclose(actual / lengths, features, atol=1e-6)
    assert "image" not in records[0] and records[0]["captions"] == ["a"]
    with pytest.raises(BrokenSample, match="four: the image could not be read when its embedding"):
        records[4]
    with_images = with_embeddings(clip, records.source, tmp_path, with_image=True)
    assert with_images.file == records.file and with_images[0]["image"] == PICTURES[0]
    again = pickle.loads(pickle.dumps(with_images))
    np.testing.assert_array_equal(again[1]["embedding"], records[1]["embedding"])
    assert isinstance(again.arrays, np.memmap) and again.with_image


def test_another_clip_has_another_file(clip, other_clip, records, tmp_path):
    assert with_embeddings(other_clip, records.source, tmp_path).file != records.file
    changed = [RECORDS[1], *RECORDS[1:]]
    with pytest.raises(DataError, match="is stale: record 0 of s"):
        with_embeddings(clip, Source("s", changed), tmp_path)


def test_moments_are_those_of_readable_images(records, monkeypatch):
    monkeypatch.setattr("clip_jax.embeddings._BLOCK", 2)
    rows = np.stack([records[i]["embedding"] for i in range(9) if i != 4]).astype(np.float64)
    mean, covariance = mean_and_covariance(records)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), atol=1e-6)
