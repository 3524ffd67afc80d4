"""What CLIP sees of a picture: random squares, or the whole, at CLIP's resolution. Shapes are static, places are traced."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Numbers = dict  # traced options by name


def crop(
    image: Float[Array, "H W 3"], top: Float[Array, ""], left: Float[Array, ""], side: Float[Array, ""], size: int
) -> Float[Array, "size size 3"]:
    """The square of `side` pixels at (top, left), resized to `size`: bilinear, antialiased. All three may be traced.

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


def square(key, shape: tuple[int, int], size: int, numbers: Numbers) -> tuple[Array, Array, Array]:
    """A random square in a picture: top, left, side.

    The side is U^power * (largest - smallest) + smallest; the largest is the shorter side of the picture, the smallest
    CLIP's resolution or, where `cut_min` is not 0, that share of the largest. Places are uniform.
    """
    u = jax.random.uniform(key, (3,))
    largest = jnp.float32(min(shape))
    smallest = jnp.where(numbers["cut_min"] > 0, numbers["cut_min"] * largest, min(*shape, size))
    side = u[0] ** numbers["cut_power"] * (largest - smallest) + smallest
    return u[1] * (shape[0] - side), u[2] * (shape[1] - side), side


def pooled(image: Float[Array, "H W 3"], size: int) -> Float[Array, "size size 3"]:
    """(average + largest) / 2 of the picture over `size` x `size` windows, which overlap where they must."""
    average, largest = image, image
    for axis in (0, 1):
        places, inside = _windows(image.shape[axis], size)
        rows = jnp.moveaxis(jnp.take(average, places.reshape(-1), axis), axis, 0).reshape(*places.shape, -1)
        weights = (inside / inside.sum(1, keepdims=True)).astype(np.float32)
        average = _back(jnp.einsum("nk,nkc->nc", weights, rows), average, axis, size)
        # Places beyond a window repeat one inside it, which changes no maximum.
        rows = jnp.moveaxis(jnp.take(largest, places.reshape(-1), axis), axis, 0).reshape(*places.shape, -1)
        largest = _back(rows.max(1), largest, axis, size)
    return (average + largest) / 2


def _windows(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in each of `size` windows of an axis, int [size, k], and which belong to it, bool [size, k]."""
    first = np.arange(size) * length // size
    last = -(-(np.arange(size) + 1) * length // size)
    places = first[:, None] + np.arange((last - first).max())[None]
    return np.minimum(places, last[:, None] - 1), places < last[:, None]


def _back(rows: Array, image: Array, axis: int, size: int) -> Array:
    other = [side for i, side in enumerate(image.shape) if i != axis]
    return jnp.moveaxis(rows.reshape(size, *other), 0, axis)
