"""Random augmentations of cutouts, which make a painting match the prompt in all views.

Geometric augmentations are one homography and one resampling; colour jitter is one 3 x 3 matrix and an offset. Hue is
rotated in YIQ, where the rotation is linear; HSV is not differentiable at grey.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqgan_jax.guided.cutouts import GREY

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
_RGB = np.linalg.inv(_YIQ).astype(np.float32)
_ERASE_RANGE = (0.1, 0.4)  # sides of an erased rectangle, as a fraction of the side of a cutout


class Augmentations(NamedTuple):
    """Enabled augmentations of a compiled program: those with a non-zero strength in any painting."""

    flip: bool
    warp: bool
    jitter: bool
    erase: bool
    noise: bool


def select_augmentations(hparams: Mapping[str, np.ndarray | np.floating]) -> Augmentations:
    """Returns which augmentations have a non-zero strength. Strengths are scalars, or arrays [n] over paintings."""

    def is_enabled(*names: str) -> bool:
        return any(np.any(hparams[name] != 0) for name in names)

    return Augmentations(
        flip=is_enabled("flip"),
        warp=is_enabled("rotate", "shift", "perspective"),
        jitter=is_enabled("jitter"),
        erase=is_enabled("erase"),
        noise=is_enabled("noise"),
    )


def augment(
    key, cutout: Float[Array, "s s 3"], hparams: dict[str, Array], augmentations: Augmentations
) -> Float[Array, "s s 3"]:
    """Applies the enabled random augmentations to one cutout."""
    keys = jax.random.split(key, 5)
    if augmentations.flip:
        cutout = jnp.where(jax.random.uniform(keys[0]) < hparams["flip"], cutout[:, ::-1], cutout)
    if augmentations.warp:
        cutout = warp(cutout, sample_homography(keys[1], hparams))
    if augmentations.jitter:
        matrix, offset = sample_colour_jitter(keys[2], hparams["jitter"])
        cutout = cutout @ matrix.T + offset
    if augmentations.erase:
        cutout = jnp.where(sample_erase_mask(keys[3], cutout.shape[0], hparams["erase"])[..., None], GREY, cutout)
    if augmentations.noise:
        strength_key, noise_key = jax.random.split(keys[4])
        deviation = jax.random.uniform(strength_key) * hparams["noise"]
        cutout = cutout + deviation * jax.random.normal(noise_key, cutout.shape)
    return cutout


def sample_homography(key, hparams: dict[str, Array]) -> Float[Array, "3 3"]:
    """Samples a homography from output to input positions: (x, y, 1), x and y in [-1, 1] from the centre."""
    u = jax.random.uniform(key, (5,), minval=-1, maxval=1)
    angle = jnp.deg2rad(u[0] * hparams["rotate"])
    x, y = 2 * u[1:3] * hparams["shift"]
    a, b = u[3:5] * hparams["perspective"] / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin, x]), jnp.stack([sin, cos, y]), jnp.array([0.0, 0.0, 1.0])])
    tilt = jnp.eye(3).at[2, 0].set(a).at[2, 1].set(b)
    return rotation @ tilt


def warp(image: Float[Array, "h w c"], matrix: Float[Array, "3 3"]) -> Float[Array, "h w c"]:
    """Warps an image by a homography with bilinear interpolation. Positions outside repeat the border pixels."""
    h, w = image.shape[:2]
    y, x = jnp.meshgrid(_pixel_centres(h), _pixel_centres(w), indexing="ij")
    positions = jnp.stack([x, y, jnp.ones_like(x)]).reshape(3, -1)
    u, v, depth = matrix @ positions
    rows = linear_weights(((v / depth + 1) * h - 1) / 2, h)
    columns = linear_weights(((u / depth + 1) * w - 1) / 2, w)
    return sample(image, rows, columns).reshape(image.shape)


Weights = list[tuple[Array, Array]]


def sample(image: Float[Array, "h w c"], rows: Weights, columns: Weights) -> Float[Array, "n c"]:
    """Samples an image bilinearly, with the `linear_weights` of n positions along both axes.

    One gather of colour vectors, the four neighbours of each position; its gradient is one scatter.
    """
    h, w = image.shape[:2]
    neighbours = [(i * w + j, a * b) for i, a in rows for j, b in columns]
    indices, weights = (jnp.stack(x) for x in zip(*neighbours, strict=True))  # [4, n]
    return jnp.sum(weights[..., None] * image.reshape(h * w, -1)[indices], axis=0)


def linear_weights(positions: Float[Array, "n"], side: int) -> Weights:
    """Returns the two nearest pixels along an axis, and their weights; positions beyond the border are on it.

    Args:
      positions: in pixels; whole numbers are the centres of pixels.
    """
    positions = jnp.clip(positions, 0, side - 1)
    first = jnp.floor(positions)
    indices = first.astype(jnp.int32)
    return [(indices, 1 - (positions - first)), (jnp.minimum(indices + 1, side - 1), positions - first)]


def _pixel_centres(side: int) -> np.ndarray:
    """Returns the coordinates of pixel centres along a side, in [-1, 1]."""
    return ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)


def sample_colour_jitter(key, strength) -> tuple[Float[Array, "3 3"], Float[Array, "1 1 3"]]:
    """Samples a change of hue, saturation, contrast and brightness, as a colour matrix and an offset.

    Hue is rotated by at most `strength` times 180 degrees.
    """
    u = jax.random.uniform(key, (4,), minval=-1, maxval=1) * strength
    hue, saturation, contrast, brightness = jnp.pi * u[0], 1 + u[1], 1 + u[2], u[3]
    cos, sin = saturation * jnp.cos(hue), saturation * jnp.sin(hue)
    one = jnp.ones(())
    zero = 0 * one
    rotation = jnp.stack([jnp.stack([one, zero, zero]), jnp.stack([zero, cos, -sin]), jnp.stack([zero, sin, cos])])
    matrix = contrast * (_RGB @ rotation @ _YIQ)
    # Contrast scales around grey; brightness is an offset.
    return matrix, jnp.broadcast_to(GREY * (1 - contrast) + brightness / 2, (1, 1, 3))


def sample_erase_mask(key, side: int, probability) -> Array:
    """Samples the mask of an erased rectangle, bool [side, side]. It is empty with probability `1 - probability`."""
    u = jax.random.uniform(key, (5,))
    low, high = _ERASE_RANGE
    sides = low + (high - low) * u[:2]
    starts = u[2:4] * (1 - sides)
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    rows = (centres >= starts[0]) & (centres < starts[0] + sides[0])
    columns = (centres >= starts[1]) & (centres < starts[1] + sides[1])
    return rows[:, None] & columns[None] & (u[4] < probability)
