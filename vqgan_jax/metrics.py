"""Reconstruction metrics: PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

WINDOW, _SIGMA = 11, 1.5  # size and standard deviation of SSIM's Gaussian window


def psnr(reconstruction: Float[ArrayLike, "b h w 3"], original: Float[ArrayLike, "b h w 3"]) -> Float[Array, "b"]:
    """Computes the peak signal-to-noise ratio in dB of images in [0, 1], at most 100."""
    mse = jnp.mean((reconstruction - original) ** 2, axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(mse, 1e-10))


def ssim(reconstruction: Float[Array, "b h w 3"], original: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
    """Computes the structural similarity (Wang et al. 2004, equation 13) of images in [0, 1].

    The window is Gaussian; the result is the mean over channels. Raises ValueError for images smaller than the window.
    """
    if min(reconstruction.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, not {reconstruction.shape[1:3]}")
    offsets = np.arange(WINDOW) - WINDOW // 2
    gaussian = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    gaussian = jnp.asarray(gaussian / gaussian.sum(), jnp.float32)

    def blur(x):
        b, h, w, c = x.shape
        x = x.transpose(0, 3, 1, 2).reshape(b * c, 1, h, w)
        for kernel in (gaussian[None, None, :, None], gaussian[None, None, None, :]):
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST)
        return x.reshape(b, c, *x.shape[2:])

    a, b = blur(reconstruction), blur(original)
    aa, bb, ab = blur(reconstruction**2) - a**2, blur(original**2) - b**2, blur(reconstruction * original) - a * b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * a * b + c1) * (2 * ab + c2) / ((a**2 + b**2 + c1) * (aa + bb + c2))
    return jnp.mean(values, axis=(1, 2, 3))
