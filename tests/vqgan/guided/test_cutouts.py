"""Cuts, against resampling written out in NumPy."""

import functools

import jax
import numpy as np
import pytest

from vqgan_jax.guided import cutouts

IMAGE = np.random.default_rng(0).random((12, 20, 3)).astype(np.float32)


def triangle(length: int, start: float, side: float, size: int) -> np.ndarray:
    """Weights [size, length] of an antialiased bilinear filter over `side` pixels from `start`."""
    step = side / size
    width = max(step, 1.0)
    weights = np.zeros((size, length))
    for i in range(size):
        centre = start + (i + 0.5) * step - 0.5
        for j in range(length):
            weights[i, j] = max(0.0, 1 - abs(j - centre) / width)
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("top, left, side", [(0.0, 0.0, 12.0), (2.25, 7.5, 4.0), (1.0, 3.0, 9.7), (3.0, 4.0, 5.0)])
def test_a_crop_is_two_products_with_triangles(top, left, side):
    crop = jax.jit(cutouts.crop, static_argnums=4)
    actual = crop(IMAGE, np.float32(top), np.float32(left), np.float32(side), 5)
    rows, columns = triangle(12, top, side, 5), triangle(20, left, side, 5)
    np.testing.assert_allclose(actual, np.einsum("yr,xc,rck->yxk", rows, columns, IMAGE), atol=1e-5)
    if side == 5:  # as large as the cut: the pixels themselves
        np.testing.assert_allclose(actual, IMAGE[3:8, 4:9], atol=1e-6)


@pytest.mark.parametrize("least, power, smallest", [(0.0, 1.0, 8), (0.0, 3.0, 8), (0.25, 1.0, 5)])
def test_squares_lie_in_the_picture_and_have_the_expected_sizes(least, power, smallest):
    hparams = {"cut_min": np.float32(least), "cut_power": np.float32(power)}
    sample = functools.partial(cutouts.sample_square, shape=(20, 30), size=8, hparams=hparams)
    keys = jax.random.split(jax.random.key(0), 4000)
    top, left, side = map(np.asarray, jax.jit(jax.vmap(sample))(keys))
    assert (
        (top >= 0).all() and (left >= 0).all() and (top + side <= 20 + 1e-4).all() and (left + side <= 30 + 1e-4).all()
    )
    assert smallest <= side.min() < smallest + 0.5 and 19.5 < side.max() <= 20
    assert side.mean() == pytest.approx(smallest + (20 - smallest) / (power + 1), rel=0.02)  # E[U^p] = 1 / (p + 1)
    assert left.max() > 18 and left.min() < 1


def test_a_wide_cut_shows_the_whole_picture_on_grey_paper():
    def weights(length: int, start: float, side: float) -> np.ndarray:
        """A triangle that only what is in the picture has a part of; without a part where the centre is outside."""
        inside = [-0.5 <= start + (i + 0.5) * side / 6 - 0.5 <= length - 0.5 for i in range(6)]
        rows = np.zeros((6, length))
        for i in np.flatnonzero(inside):
            rows[i] = triangle(length, start + i * side / 6, side / 6, 1)
        return rows

    top, left, side = -7.0, -3.5, 28.0
    actual = jax.jit(cutouts.crop_on_paper, static_argnums=4)(IMAGE, top, left, side, 6)
    rows, columns = weights(12, top, side), weights(20, left, side)
    expected = 0.5 + np.einsum("yr,xc,rck->yxk", rows, columns, IMAGE - 0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert (np.asarray(actual)[0] == 0.5).all() and (np.asarray(actual)[3] != 0.5).any()
    sample = functools.partial(cutouts.sample_wide_square, shape=(12, 20), hparams={"wide_side": np.float32(1.5)})
    top, left, side = map(np.asarray, jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 2000)))
    assert 20 <= side.min() < 20.1 and 29.9 < side.max() <= 30 and side.mean() == pytest.approx(25, rel=0.01)
    assert (top <= 0).all() and (left <= 0).all() and (top + side >= 11.999).all() and (left + side >= 19.999).all()


def test_a_picture_smaller_than_clips_is_one_crop():
    hparams = {"cut_min": np.float32(0), "cut_power": np.float32(1)}
    assert [float(x) for x in cutouts.sample_square(jax.random.key(1), (16, 16), 224, hparams)] == [0.0, 0.0, 16.0]


@pytest.mark.parametrize("size", [4, 5, 12, 16])
def test_pooling_is_average_and_largest_over_windows(size):
    actual = jax.jit(cutouts.pool, static_argnums=1)(IMAGE, size)
    expected = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            a, b = i * 12 // size, -(-(i + 1) * 12 // size)
            c, d = j * 20 // size, -(-(j + 1) * 20 // size)
            window = IMAGE[a:b, c:d]
            expected[i, j] = (window.mean((0, 1)) + window.max((0, 1))) / 2
    np.testing.assert_allclose(actual, expected, atol=1e-6)
