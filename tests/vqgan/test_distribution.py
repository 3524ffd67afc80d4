"""Distances of collections against closed forms, SciPy's matrix root, and double loops."""

import numpy as np
import pytest
import scipy.linalg

from vqgan_jax import distribution

RNG = np.random.default_rng(0)


def test_frechet_distance_with_scipy_s_matrix_root():
    a, b = RNG.normal(size=(50, 6)), RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * root)
    assert distribution.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert distribution.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_points_on_axes_in_closed_form():
    # Two points at distance 2r along each axis: variances are known exactly.
    a = np.array([[1.0, 0.0], [-1.0, 0.0]])
    b = np.array([[3.0, 0.0], [-3.0, 0.0]]) + [5.0, 2.0]
    assert distribution.frechet_distance(a, b) == pytest.approx(25 + 4 + (np.sqrt(18) - np.sqrt(2)) ** 2)


@pytest.mark.parametrize("n, d", [(5, 64), (200, 8)])
def test_a_collection_is_at_no_distance_from_itself(n, d):
    x = RNG.normal(size=(n, d)).astype(np.float32)
    assert distribution.frechet_distance(x, x) < 1e-6 * d
    assert abs(distribution.cmmd(x, x)) < 1e-9


def test_cmmd_by_double_loops(monkeypatch):
    a, b = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (RNG.normal(size=(7, 5)), RNG.normal(size=(9, 5)) + 1)
    )

    def mean(x, y):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / 200) for q in y] for p in x])

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert distribution.cmmd(a, b) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(distribution, "_TILE", 2)
    assert distribution.cmmd(a, b) == pytest.approx(expected, rel=1e-9)


def test_one_image_is_no_collection():
    for distance in (distribution.frechet_distance, distribution.cmmd):
        with pytest.raises(ValueError, match="at least two images"):
            distance(np.zeros((1, 4)), np.zeros((3, 4)))
