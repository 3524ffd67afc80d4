"""Cutouts at CLIP's resolution: random square crops, or the whole image pooled. Positions and sizes are traced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

GREY = 0.5  # of what a cutout does not show: near the mean of a CLIP's pixels, so that it resembles nothing


def crop(
    image: Float[Array, "H W 3"], top: Float[Array, ""], left: Float[Array, ""], side: Float[Array, ""], size: int
) -> Float[Array, "size size 3"]:
    """Crops a square of `side` pixels at (top, left) and resizes it (bilinear, antialiased).

    `top`, `left` and `side` may be traced. The interpolation is separable: the resize and its gradient are two matrix
    products each, without a gather.
    """
    scale = size / side
    return jax.image.scale_and_translate(
        image,
        (size, size, image.shape[2]),
        (0, 1),
        jnp.stack([scale, scale]),
        -jnp.stack([top, left]) * scale,
        "linear",
        antialias=True,
        precision=jax.lax.Precision.DEFAULT,
    )


Shape = tuple[int, int] | tuple[Array, Array]  # height and width, which may be traced


def sample_square(key, shape: Shape, size: int, hparams: dict) -> tuple[Array, Array, Array]:
    """Samples the top, left and side of a square in an image.

    The side is U^power * (largest - smallest) + smallest. The largest side is the shorter side of the image. The
    smallest is CLIP's resolution, or `cut_min` times the largest if `cut_min` is not 0. Positions are uniform.
    """
    u = jax.random.uniform(key, (3,))
    least = min if isinstance(shape[0], int) else lambda *values: functools.reduce(jnp.minimum, values)
    largest = jnp.float32(least(*shape))
    smallest = jnp.where(hparams["cut_min"] > 0, hparams["cut_min"] * largest, least(*shape, size))
    side = u[0] ** hparams["cut_power"] * (largest - smallest) + smallest
    return u[1] * (shape[0] - side), u[2] * (shape[1] - side), side


def sample_wide_square(key, shape: Shape, hparams: dict) -> tuple[Array, Array, Array]:
    """Samples the top, left and side of a square in which the whole image lies.

    The side is uniform from the longer side of the image to `wide_side` times as much, and so are positions.
    """
    u = jax.random.uniform(jax.random.fold_in(key, 1), (3,))
    longest = jnp.maximum(*shape)
    side = longest * (1 + u[0] * (hparams["wide_side"] - 1))
    return u[1] * (shape[0] - side), u[2] * (shape[1] - side), side


def crop_on_paper(
    image: Float[Array, "H W 3"], top: Float[Array, ""], left: Float[Array, ""], side: Float[Array, ""], size: int
) -> Float[Array, "size size 3"]:
    """Crops a square that may exceed the image; what is outside of it is grey."""
    return crop(image - GREY, top, left, side, size) + GREY


def pool(image: Float[Array, "H W 3"], size: int) -> Float[Array, "size size 3"]:
    """Pools an image adaptively to `size` x `size` by (mean + maximum) / 2.

    Windows overlap where `size` does not divide a side.
    """
    mean, maximum = image, image
    for axis in (0, 1):
        indices, in_window = _pooling_windows(image.shape[axis], size)
        rows = jnp.moveaxis(jnp.take(mean, indices.reshape(-1), axis), axis, 0).reshape(*indices.shape, -1)
        weights = (in_window / in_window.sum(1, keepdims=True)).astype(np.float32)
        mean = _restore_axis(jnp.einsum("nk,nkc->nc", weights, rows), mean, axis, size)
        # Padding indices repeat the last index of the window, which does not change the maximum.
        rows = jnp.moveaxis(jnp.take(maximum, indices.reshape(-1), axis), axis, 0).reshape(*indices.shape, -1)
        maximum = _restore_axis(rows.max(1), maximum, axis, size)
    return (mean + maximum) / 2


def _pooling_windows(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of pooling windows along an axis, int [size, k], and their padding mask, bool [size, k]."""
    first = np.arange(size) * length // size
    last = -(-(np.arange(size) + 1) * length // size)
    indices = first[:, None] + np.arange((last - first).max())[None]
    return np.minimum(indices, last[:, None] - 1), indices < last[:, None]


def _restore_axis(rows: Array, image: Array, axis: int, size: int) -> Array:
    """Reshapes pooled rows, [size, -1], back to the layout of `image`, with the windows along `axis`."""
    other_dims = [side for i, side in enumerate(image.shape) if i != axis]
    return jnp.moveaxis(rows.reshape(size, *other_dims), 0, axis)
