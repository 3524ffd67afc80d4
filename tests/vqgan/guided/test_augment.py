"""Augmentations, against SciPy, colorsys' own colour space and counting."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vqgan_jax.guided import augment
from vqgan_jax.guided.options import resolve

IMAGE = np.random.default_rng(0).random((10, 14, 3)).astype(np.float32)
ALL = augment.Augmentations(True, True, True, True, True)
NONE = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "erase": 0.0, "noise": 0.0}


def hparams(**changes):
    return {name: np.float32(value) for name, value in (NONE | changes).items()}


@pytest.fixture(scope="module")
def augmented():
    """The function that augments one cut many times."""

    @jax.jit
    def draw(keys, hparams):
        return jax.vmap(lambda key: augment.augment(key, jnp.asarray(IMAGE[:, :10]), hparams, ALL))(keys)

    return lambda n=64, **changes: np.asarray(draw(jax.random.split(jax.random.key(0), n), hparams(**changes)))


def test_strengths_of_0_change_nothing(augmented):
    np.testing.assert_allclose(augmented(), np.broadcast_to(IMAGE[:, :10], (64, 10, 10, 3)), atol=2e-5)


def test_augmentations_with_a_strength_other_than_0_are_active():
    assert augment.select_augmentations(hparams()) == augment.Augmentations(False, False, False, False, False)
    shifted = {name: np.array([value, value]) for name, value in hparams(shift=0.1).items()}
    assert augment.select_augmentations(shifted) == augment.Augmentations(False, True, False, False, False)
    assert augment.select_augmentations(resolve({"erase": 0.5}).hparams()) == ALL


def test_flips(augmented):
    cuts = augmented(flip=0.5)
    is_flipped = np.array([np.abs(x - IMAGE[:, :10][:, ::-1]).max() < 1e-4 for x in cuts])
    assert 15 < is_flipped.sum() < 49
    assert all(np.abs(x - IMAGE[:, :10]).max() < 1e-4 for x in cuts[~is_flipped])


def test_warp_samples_where_scipy_does():
    matrix = np.array([[0.9, -0.2, 0.1], [0.3, 1.1, -0.2], [0.1, -0.05, 1.0]], np.float32)
    actual = jax.jit(augment.warp)(IMAGE, matrix)
    expected = np.zeros_like(IMAGE)
    positions = np.zeros((2, 10, 14))
    for i in range(10):
        for j in range(14):
            u, v, w = matrix @ np.array([(j + 0.5) / 14 * 2 - 1, (i + 0.5) / 10 * 2 - 1, 1.0])
            positions[:, i, j] = ((v / w + 1) * 10 - 1) / 2, ((u / w + 1) * 14 - 1) / 2
    for c in range(3):
        expected[..., c] = ndimage.map_coordinates(IMAGE[..., c], positions, order=1, mode="nearest")
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_warp_has_one_gather_and_the_gradient_of_its_weights():
    """The map is linear: its gradient is the product with the transposed matrix, here of a small picture."""
    matrix = jnp.array([[0.8, -0.3, 0.2], [0.2, 0.9, -0.1], [0.1, 0.05, 1.0]])
    image = IMAGE[:5, :6, :2]
    basis = np.eye(30, dtype=np.float32).reshape(30, 5, 6, 1)
    weights = jax.jit(jax.vmap(augment.warp, (0, None)))(basis, matrix).reshape(30, 30)  # [input, output]
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    cotangent = np.random.default_rng(1).standard_normal(image.shape).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.vdot(augment.warp(x, matrix), cotangent)))(image)
    np.testing.assert_allclose(gradient.reshape(30, 2), weights @ cotangent.reshape(30, 2), atol=1e-5)
    assert str(jax.make_jaxpr(augment.warp)(image, matrix)).count(" gather[") == 1


def test_homographies_stay_within_their_strengths():
    draw = jax.jit(jax.vmap(augment.sample_homography, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(1), 2000)
    rotated = np.asarray(draw(keys, hparams(rotate=30.0)))
    angles = np.degrees(np.arctan2(rotated[:, 1, 0], rotated[:, 0, 0]))
    assert 29 < np.abs(angles).max() <= 30 and abs(angles.mean()) < 1.5
    np.testing.assert_allclose(
        rotated[:, :2, :2] @ rotated[:, :2, :2].transpose(0, 2, 1), np.tile(np.eye(2), (2000, 1, 1)), atol=1e-5
    )
    shifted = np.asarray(draw(keys, hparams(shift=0.25)))
    assert 0.48 < np.abs(shifted[:, :2, 2]).max() <= 0.5  # a quarter of the side, which is 2
    tilted = np.asarray(draw(keys, hparams(perspective=0.9)))
    corners = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)])
    assert (np.einsum("nij,cj->nci", tilted, corners)[..., 2] > 0).all(), "no horizon inside the cut"


def test_hue_is_rotated_in_yiq():
    # Grey stays grey and luma follows contrast and brightness.
    for seed in range(20):
        matrix, offset = augment.sample_colour_jitter(jax.random.key(seed), np.float32(0.3))
        matrix, offset = np.asarray(matrix), np.asarray(offset)[0, 0]
        u = np.asarray(jax.random.uniform(jax.random.key(seed), (4,), minval=-1, maxval=1)) * 0.3
        grey = matrix @ np.full(3, 0.5) + offset
        np.testing.assert_allclose(grey, np.full(3, 0.5 + u[3] / 2), atol=1e-3)
        for colour in ((0.9, 0.2, 0.1), (0.1, 0.5, 0.7)):
            _, i, q = colorsys.rgb_to_yiq(*colour)
            _, i2, q2 = colorsys.rgb_to_yiq(*(matrix @ np.array(colour) + offset))
            assert np.hypot(i2, q2) == pytest.approx((1 + u[1]) * (1 + u[2]) * np.hypot(i, q), rel=0.02)
            turn = (np.arctan2(q2, i2) - np.arctan2(q, i) + np.pi) % (2 * np.pi) - np.pi
            assert turn == pytest.approx(np.pi * u[0], abs=0.03)


def test_erased_rectangles():
    sample = jax.jit(jax.vmap(lambda key: augment.sample_erase_mask(key, 40, 0.5)))
    erased = sample(jax.random.split(jax.random.key(2), 1000))
    area = np.asarray(erased).mean((1, 2))
    assert 0.45 < (area > 0).mean() < 0.55
    assert (
        area[area > 0].min() > 0.05**2
        and area.max() < 0.45**2
        and area[area > 0].mean() == pytest.approx(0.0625, rel=0.1)
    )


def test_noise_has_a_uniform_strength(augmented):
    deviation = (augmented(500, noise=0.2) - IMAGE[:, :10]).std((1, 2, 3))
    assert deviation.max() == pytest.approx(0.2, rel=0.1) and deviation.min() < 0.01
    assert deviation.mean() == pytest.approx(0.1, rel=0.1)


def test_gradients_are_finite_at_grey(augmented):
    strengths = hparams(flip=0.5, rotate=10, shift=0.1, perspective=0.2, jitter=0.2, erase=0.5, noise=0.1)
    strengths = jax.tree.map(jnp.asarray, strengths)

    def loss(x):
        return jnp.sum(augment.augment(jax.random.key(0), x, strengths, ALL) ** 2)

    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.full((8, 8, 3), 0.5))).all()
