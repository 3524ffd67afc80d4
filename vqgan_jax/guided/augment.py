"""Random augmentations of cuts, so that a painting fits the prompt under all of them and not in one view only.

Geometry is one resampling by one homography; colour is one 3 x 3 matrix. Hue is turned in the YIQ space, where it is linear;
HSV has a kink at grey, through which gradients would go.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
_RGB = np.linalg.inv(_YIQ).astype(np.float32)
_ERASED = (0.1, 0.4)  # share of each side of a cut that an erased rectangle covers
_GREY = 0.5


class Augmentations(NamedTuple):
    """The augmentations that a program contains: those whose strength is not 0 in all paintings."""

    flip: bool
    warp: bool
    jitter: bool
    erase: bool
    noise: bool


def active(hparams: Mapping[str, np.ndarray | np.floating]) -> Augmentations:
    """The augmentations that strengths ask for, each a number or an array with one for each painting."""

    def is_any(*names: str) -> bool:
        return any(np.any(hparams[name] != 0) for name in names)

    return Augmentations(
        is_any("flip"), is_any("rotate", "shift", "perspective"), is_any("jitter"), is_any("erase"), is_any("noise")
    )


def augment(
    key, cut: Float[Array, "s s 3"], hparams: dict[str, Array], augmentations: Augmentations
) -> Float[Array, "s s 3"]:
    """Changes one cut at random."""
    keys = jax.random.split(key, 5)
    if augmentations.flip:
        cut = jnp.where(jax.random.uniform(keys[0]) < hparams["flip"], cut[:, ::-1], cut)
    if augmentations.warp:
        cut = warp(cut, homography(keys[1], hparams))
    if augmentations.jitter:
        matrix, offset = colour_jitter(keys[2], hparams["jitter"])
        cut = cut @ matrix.T + offset
    if augmentations.erase:
        cut = jnp.where(erased_mask(keys[3], cut.shape[0], hparams["erase"])[..., None], _GREY, cut)
    if augmentations.noise:
        strength_key, noise_key = jax.random.split(keys[4])
        deviation = jax.random.uniform(strength_key) * hparams["noise"]
        cut = cut + deviation * jax.random.normal(noise_key, cut.shape)
    return cut


def homography(key, hparams: dict[str, Array]) -> Float[Array, "3 3"]:
    """A random homography from the augmented cut to the cut: (x, y, 1), x and y in [-1, 1] from the centre."""
    u = jax.random.uniform(key, (5,), minval=-1, maxval=1)
    angle = jnp.deg2rad(u[0] * hparams["rotate"])
    x, y = 2 * u[1:3] * hparams["shift"]
    a, b = u[3:5] * hparams["perspective"] / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin, x]), jnp.stack([sin, cos, y]), jnp.array([0.0, 0.0, 1.0])])
    tilt = jnp.eye(3).at[2, 0].set(a).at[2, 1].set(b)
    return rotation @ tilt


def warp(image: Float[Array, "h w c"], matrix: Float[Array, "3 3"]) -> Float[Array, "h w c"]:
    """Resamples an image bilinearly at the positions of a homography; the border is continued."""
    h, w = image.shape[:2]
    y, x = jnp.meshgrid(_pixel_centres(h), _pixel_centres(w), indexing="ij")
    positions = jnp.stack([x, y, jnp.ones_like(x)]).reshape(3, -1)
    u, v, depth = matrix @ positions
    rows = ((v / depth + 1) * h - 1) / 2
    columns = ((u / depth + 1) * w - 1) / 2
    sampled = [map_coordinates(image[..., c], [rows, columns], order=1, mode="nearest") for c in range(image.shape[-1])]
    return jnp.stack(sampled, axis=-1).reshape(image.shape)


def _pixel_centres(side: int) -> np.ndarray:
    """Centres of the pixels along a side, in [-1, 1]."""
    return ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)


def colour_jitter(key, strength) -> tuple[Float[Array, "3 3"], Float[Array, "1 1 3"]]:
    """A random change of hue (at most `strength` of half a turn), saturation, contrast and brightness: matrix, offset."""
    u = jax.random.uniform(key, (4,), minval=-1, maxval=1) * strength
    hue, saturation, contrast, brightness = jnp.pi * u[0], 1 + u[1], 1 + u[2], u[3]
    cos, sin = saturation * jnp.cos(hue), saturation * jnp.sin(hue)
    one = jnp.ones(())
    zero = 0 * one
    rotation = jnp.stack([jnp.stack([one, zero, zero]), jnp.stack([zero, cos, -sin]), jnp.stack([zero, sin, cos])])
    matrix = contrast * (_RGB @ rotation @ _YIQ)
    # Contrast is about grey, brightness a shift.
    return matrix, jnp.broadcast_to(_GREY * (1 - contrast) + brightness / 2, (1, 1, 3))


def erased_mask(key, side: int, probability) -> Array:
    """The pixels of a cut that a random rectangle erases, bool [side, side]; none, with the remaining probability."""
    u = jax.random.uniform(key, (5,))
    sides = _ERASED[0] + (_ERASED[1] - _ERASED[0]) * u[:2]
    starts = u[2:4] * (1 - sides)
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    rows = (centres >= starts[0]) & (centres < starts[0] + sides[0])
    columns = (centres >= starts[1]) & (centres < starts[1] + sides[1])
    return rows[:, None] & columns[None] & (u[4] < probability)
