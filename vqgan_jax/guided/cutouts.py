"""Cuts of a picture at CLIP's resolution: random squares, or the whole picture pooled. Positions and sizes are traced."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def crop(
    image: Float[Array, "H W 3"], top: Float[Array, ""], left: Float[Array, ""], side: Float[Array, ""], size: int
) -> Float[Array, "size size 3"]:
    """Crops a square of `side` pixels at (top, left) and resizes it: bilinear, antialiased. All three may be traced.

    Two matrix products, since the weights of rows and columns are independent: nothing is gathered, and the gradient is two
    matrix products, too.
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


def random_square(key, shape: tuple[int, int], size: int, hparams: dict) -> tuple[Array, Array, Array]:
    """Samples a square in a picture: top, left, side.

    The side is U^power * (largest - smallest) + smallest; the largest is the shorter side of the picture, the smallest
    CLIP's resolution or, where `cut_min` is not 0, that share of the largest. Positions are uniform.
    """
    u = jax.random.uniform(key, (3,))
    largest = jnp.float32(min(shape))
    smallest = jnp.where(hparams["cut_min"] > 0, hparams["cut_min"] * largest, min(*shape, size))
    side = u[0] ** hparams["cut_power"] * (largest - smallest) + smallest
    return u[1] * (shape[0] - side), u[2] * (shape[1] - side), side


def pool(image: Float[Array, "H W 3"], size: int) -> Float[Array, "size size 3"]:
    """Pools an image over `size` x `size` windows by (mean + maximum) / 2; windows overlap where they must."""
    mean, maximum = image, image
    for axis in (0, 1):
        indices, in_window = _windows(image.shape[axis], size)
        rows = jnp.moveaxis(jnp.take(mean, indices.reshape(-1), axis), axis, 0).reshape(*indices.shape, -1)
        weights = (in_window / in_window.sum(1, keepdims=True)).astype(np.float32)
        mean = _restore_axis(jnp.einsum("nk,nkc->nc", weights, rows), mean, axis, size)
        # Indices beyond a window repeat one of the window, which changes no maximum.
        rows = jnp.moveaxis(jnp.take(maximum, indices.reshape(-1), axis), axis, 0).reshape(*indices.shape, -1)
        maximum = _restore_axis(rows.max(1), maximum, axis, size)
    return (mean + maximum) / 2


def _windows(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of each of `size` windows of an axis, int [size, k], and which belong to the window, bool [size, k]."""
    first = np.arange(size) * length // size
    last = -(-(np.arange(size) + 1) * length // size)
    indices = first[:, None] + np.arange((last - first).max())[None]
    return np.minimum(indices, last[:, None] - 1), indices < last[:, None]


def _restore_axis(rows: Array, image: Array, axis: int, size: int) -> Array:
    """Moves the windows, [size, -1], to `axis` of an image whose other axes stay."""
    other_sides = [side for i, side in enumerate(image.shape) if i != axis]
    return jnp.moveaxis(rows.reshape(size, *other_sides), 0, axis)
