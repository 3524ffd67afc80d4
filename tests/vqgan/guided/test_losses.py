"""Distances at their singular points, the clamp's and the stop's gradients, and terms of pictures by loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.guided import losses

RNG = np.random.default_rng(0)
IMAGE = RNG.random((6, 7, 3)).astype(np.float32)
IMAGE_JAX = jnp.asarray(IMAGE)


def units(n, d=8):
    x = RNG.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_spherical_is_half_the_squared_angle():
    u, v = units(200), units(200)
    actual = losses.spherical_distance(jnp.float32(u), jnp.float32(v))
    angle = np.arccos(np.sum(u * v, axis=1))
    np.testing.assert_allclose(actual, angle**2 / 2, rtol=1e-5)
    np.testing.assert_allclose(actual, 2 * np.arcsin(np.linalg.norm(u - v, axis=1) / 2) ** 2, rtol=1e-5)


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.5, 1.5, 3.0, np.pi - 1e-2])
def test_the_gradient_of_the_spherical_distance_is_the_angle(angle):
    v, w = units(2)
    w -= v * (v @ w)
    w /= np.linalg.norm(w)
    u = np.cos(angle) * v + np.sin(angle) * w
    slope = np.asarray(jax.grad(losses.spherical_distance)(jnp.float32(u), jnp.float32(v)))
    along = np.cos(angle) * w - np.sin(angle) * v  # of unit length, away from v
    assert slope @ along == pytest.approx(angle, rel=2e-3, abs=1e-6)


def test_the_spherical_distance_has_finite_gradients_at_0_and_at_pi():
    u = jnp.float32(units(1)[0])
    for v, expected in ((u, 0.0), (-u, np.pi**2 / 2)):
        value, slope = jax.value_and_grad(losses.spherical_distance)(u, v)
        assert value == pytest.approx(expected, abs=1e-6) and np.isfinite(slope).all()
    assert np.isfinite(jax.grad(lambda u: losses.spherical_distance(u, jnp.zeros(8)))(u)).all()  # a part that is not there


def test_clamp_passes_gradients_that_lead_back_into_the_range():
    x = np.array([-0.5, -0.5, 0.0, 0.3, 0.3, 1.0, 1.5, 1.5], np.float32)
    g = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0], np.float32)
    y, pullback = jax.vjp(losses.clamp_with_grad, x)
    np.testing.assert_array_equal(y, np.clip(x, 0, 1))
    expected = []
    for xi, gi in zip(x, g, strict=True):  # descending moves against the gradient: down from above 1, up from below 0
        back = 0 <= xi <= 1 or (xi > 1 and gi > 0) or (xi < 0 and gi < 0)
        expected.append(gi if back else 0.0)
    np.testing.assert_array_equal(pullback(g)[0], expected)


@pytest.mark.parametrize("weight", [2.0, -0.5])
@pytest.mark.parametrize("stop", [-np.inf, -1.0, 0.6])
def test_weights_and_stops(weight, stop):
    loss = lambda d: losses.prompt_loss(d, jnp.float32(weight), jnp.float32(stop))  # noqa: E731
    for distance in (0.2, 0.5, 0.7, 1.5):
        value, slope = jax.value_and_grad(loss)(jnp.float32(distance))
        assert value == pytest.approx(weight * distance)
        signed = distance if weight > 0 else -distance
        assert slope == pytest.approx(weight if signed > stop else 0.0)


def test_total_variation_and_asymmetry():
    h, w = IMAGE.shape[:2]
    down = [(IMAGE[i + 1, j, c] - IMAGE[i, j, c]) ** 2 for i in range(h - 1) for j in range(w) for c in range(3)]
    right = [(IMAGE[i, j + 1, c] - IMAGE[i, j, c]) ** 2 for i in range(h) for j in range(w - 1) for c in range(3)]
    assert losses.total_variation(IMAGE_JAX) == pytest.approx(np.mean(down) + np.mean(right), rel=1e-5)
    mirrored = [(IMAGE[i, j, c] - IMAGE[i, w - 1 - j, c]) ** 2 for i in range(h) for j in range(w) for c in range(3)]
    assert losses.asymmetry(IMAGE_JAX) == pytest.approx(np.mean(mirrored), rel=1e-5)


def test_colourfulness():
    r, g, b = IMAGE.reshape(-1, 3).T.astype(float)
    rg, yb = r - g, (r + g) / 2 - b
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert losses.colourfulness(IMAGE_JAX) == pytest.approx(expected, rel=1e-5)
    grey = jnp.full((4, 4, 3), 0.5)
    assert losses.colourfulness(grey) == pytest.approx(0, abs=1e-5)
    assert np.isfinite(jax.grad(losses.colourfulness)(grey)).all()


@pytest.mark.parametrize("width", [0.0, 0.2, 0.5])
def test_border_loss(width):
    colour = np.array([0.1, 0.9, 0.4], np.float32)
    h, w = IMAGE.shape[:2]
    differences = [
        (IMAGE[i, j] - colour) ** 2
        for i in range(h)
        for j in range(w)
        if min(i, j, h - 1 - i, w - 1 - j) < width * min(h, w)
    ]
    assert losses.border_loss(IMAGE_JAX, jnp.asarray(colour), width) == pytest.approx(
        np.mean(differences) if differences else 0.0, rel=1e-5
    )


def test_palette_loss():
    palette = RNG.random((4, 3)).astype(np.float32)
    nearest = [min(((pixel - colour) ** 2).sum() for colour in palette) for pixel in IMAGE.reshape(-1, 3)]
    assert losses.palette_loss(IMAGE_JAX, jnp.asarray(palette)) == pytest.approx(np.mean(nearest), rel=1e-5)
