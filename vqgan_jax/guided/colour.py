"""Colours: logits of pixels, decorrelated channels, the nearest of a palette, and pictures with an alpha channel."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

# Square root of the covariance of RGB in ImageNet, of which the longest column has norm 1 (lucid's colour transform).
_RGB_ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
CORRELATION = (_RGB_ROOT / np.linalg.norm(_RGB_ROOT, axis=0).max()).astype(np.float32)
_LEAST = 1 / 512  # half of a step of uint8: the smallest value of a pixel that has finite logits


def to_logits(pixels: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Inverts the sigmoid, up to half of a step of uint8."""
    p = np.clip(pixels, _LEAST, 1 - _LEAST)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def correlate(channels: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Converts decorrelated channels, of which the first is the lightness, to the logits of RGB."""
    return channels @ CORRELATION.T


def decorrelate(logits: Float32[np.ndarray, "... 3"]) -> Float32[np.ndarray, "... 3"]:
    """Inverts `correlate`."""
    return (logits @ np.linalg.inv(CORRELATION.T)).astype(np.float32)


def nearest_colours(pixels: Float[Array, "n 3"], palette: Float32[np.ndarray, "k 3"]) -> Float[Array, "n 3"]:
    """Projects colours to the nearest of a palette, with a straight-through gradient."""
    distance = jnp.sum((pixels[:, None] - palette[None]) ** 2, axis=-1)
    return pixels + jax.lax.stop_gradient(jnp.asarray(palette)[jnp.argmin(distance, axis=-1)] - pixels)


def flatten(
    x: Float[Array | np.ndarray, "... c"], background: Float[Array, "1 1 3"] | float
) -> Float[Array | np.ndarray, "... 3"]:
    """Composites a picture with alpha over a background colour; RGB pictures are returned unchanged."""
    if x.shape[-1] == 3:
        return x
    return x[..., 3:] * x[..., :3] + (1 - x[..., 3:]) * background


def cover(
    x: Float[Array | np.ndarray, "h w c"], overlay: Float[Array | np.ndarray, "h w 4"]
) -> Float[Array | np.ndarray, "h w c"]:
    """Composites an RGBA overlay over a picture with or without alpha."""
    opacity = overlay[..., 3:]
    if x.shape[-1] == 3:
        return (1 - opacity) * x + opacity * overlay[..., :3]
    below = (1 - opacity) * x[..., 3:]
    alpha = opacity + below
    pixels = (below * x[..., :3] + opacity * overlay[..., :3]) / jnp.maximum(alpha, 1e-6)
    return jnp.concatenate([pixels, alpha], axis=-1)


def over_white(images: UInt8[np.ndarray, "*n H W c"]) -> UInt8[np.ndarray, "*n H W 3"]:
    """Composites images with alpha over white, for grids and videos; RGB images are returned unchanged."""
    if images.shape[-1] == 3:
        return images
    return np.round(255 * flatten(images.astype(np.float32) / 255, 1.0)).astype(np.uint8)
