"""PSNR and SSIM against loops over pixels; evaluators through a trained run."""

import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import evaluators

RNG = np.random.default_rng(0)


def test_psnr_in_closed_form():
    wanted = jnp.full((2, 8, 8, 3), 0.5)
    found = wanted + jnp.asarray([0.1, 0.01])[:, None, None, None]
    np.testing.assert_allclose(evaluators.psnr(found, wanted), [20, 40], rtol=1e-4)
    np.testing.assert_allclose(evaluators.psnr(wanted, wanted), 100)


def test_ssim_by_loops_over_windows():
    a, b = RNG.random((2, 14, 13, 3)), RNG.random((2, 14, 13, 3))
    b = 0.5 * a + 0.5 * b
    offsets = np.arange(11) - 5
    bell = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    bell /= bell.sum()
    wanted = []
    for x, y in zip(a, b, strict=True):
        values = []
        for c in range(3):
            for top in range(4):
                for left in range(3):
                    p, q = (z[top : top + 11, left : left + 11, c] for z in (x, y))
                    mp, mq = (bell * p).sum(), (bell * q).sum()
                    vp, vq = (bell * (p - mp) ** 2).sum(), (bell * (q - mq) ** 2).sum()
                    cov = (bell * (p - mp) * (q - mq)).sum()
                    values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        wanted.append(np.mean(values))
    found = evaluators.ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(evaluators.ssim(jnp.asarray(a, jnp.float32), jnp.asarray(a, jnp.float32)), 1, rtol=1e-6)


def test_ssim_needs_pictures_as_large_as_its_window():
    with pytest.raises(ValueError, match="at least 11"):
        evaluators.ssim(jnp.zeros((1, 8, 16, 3)), jnp.zeros((1, 8, 16, 3)))
