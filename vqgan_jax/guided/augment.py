"""What happens to a cut before CLIP sees it: so that a painting pleases CLIP from every side, and not from one alone.

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
_HIDDEN = (0.1, 0.4)  # share of each side of a cut that a hidden rectangle covers
_GREY = 0.5


class Kinds(NamedTuple):
    """Which kinds there are: decided before a program is compiled, by numbers that are 0 in all paintings."""

    flip: bool
    warp: bool
    jitter: bool
    erase: bool
    noise: bool


def kinds(numbers: Mapping[str, np.ndarray | np.floating]) -> Kinds:
    """Of options, each a number or an array with one a painting."""

    def some(*names: str) -> bool:
        return any(np.any(numbers[name] != 0) for name in names)

    return Kinds(some("flip"), some("rotate", "shift", "perspective"), some("jitter"), some("erase"), some("noise"))


def augment(key, cut: Float[Array, "s s 3"], numbers: dict[str, Array], which: Kinds) -> Float[Array, "s s 3"]:
    """One cut, changed at random."""
    keys = jax.random.split(key, 5)
    if which.flip:
        cut = jnp.where(jax.random.uniform(keys[0]) < numbers["flip"], cut[:, ::-1], cut)
    if which.warp:
        cut = warp(cut, homography(keys[1], numbers))
    if which.jitter:
        matrix, offset = colours(keys[2], numbers["jitter"])
        cut = cut @ matrix.T + offset
    if which.erase:
        cut = jnp.where(hidden(keys[3], cut.shape[0], numbers["erase"])[..., None], _GREY, cut)
    if which.noise:
        strength, grain = jax.random.split(keys[4])
        amount = jax.random.uniform(strength) * numbers["noise"]
        cut = cut + amount * jax.random.normal(grain, cut.shape)
    return cut


def homography(key, numbers: dict[str, Array]) -> Float[Array, "3 3"]:
    """Where a place of the changed cut lies in the cut, both in [-1, 1] from the middle, as (x, y, 1)."""
    u = jax.random.uniform(key, (5,), minval=-1, maxval=1)
    angle = jnp.deg2rad(u[0] * numbers["rotate"])
    x, y = 2 * u[1:3] * numbers["shift"]
    a, b = u[3:5] * numbers["perspective"] / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin, x]), jnp.stack([sin, cos, y]), jnp.array([0.0, 0.0, 1.0])])
    tilt = jnp.eye(3).at[2, 0].set(a).at[2, 1].set(b)
    return turn @ tilt


def warp(image: Float[Array, "h w c"], matrix: Float[Array, "3 3"]) -> Float[Array, "h w c"]:
    """The picture resampled, bilinear; beyond its border its nearest pixel."""
    h, w = image.shape[:2]
    y, x = jnp.meshgrid(_ticks(h), _ticks(w), indexing="ij")
    places = jnp.stack([x, y, jnp.ones_like(x)]).reshape(3, -1)
    u, v, depth = matrix @ places
    rows = ((v / depth + 1) * h - 1) / 2
    columns = ((u / depth + 1) * w - 1) / 2
    sampled = [
        map_coordinates(image[..., c], [rows, columns], order=1, mode="nearest") for c in range(image.shape[-1])
    ]
    return jnp.stack(sampled, axis=-1).reshape(image.shape)


def _ticks(side: int) -> np.ndarray:
    """Centres of pixels, in [-1, 1]."""
    return ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)


def colours(key, strength) -> tuple[Float[Array, "3 3"], Float[Array, "1 1 3"]]:
    """A change of hue (at most `strength` of half a turn), saturation, contrast and brightness: matrix and offset."""
    u = jax.random.uniform(key, (4,), minval=-1, maxval=1) * strength
    hue, saturation, contrast, brightness = jnp.pi * u[0], 1 + u[1], 1 + u[2], u[3]
    cos, sin = saturation * jnp.cos(hue), saturation * jnp.sin(hue)
    one = jnp.ones(())
    turn = jnp.stack([jnp.stack([one, 0 * one, 0 * one]), jnp.stack([0 * one, cos, -sin]), jnp.stack([0 * one, sin, cos])])
    matrix = contrast * (_RGB @ turn @ _YIQ)
    # Contrast is about grey, brightness a shift.
    return matrix, jnp.broadcast_to(_GREY * (1 - contrast) + brightness / 2, (1, 1, 3))


def hidden(key, side: int, probability) -> Array:
    """Which pixels of a cut a random rectangle hides, bool [side, side]; none, with the remaining probability."""
    u = jax.random.uniform(key, (5,))
    sides = _HIDDEN[0] + (_HIDDEN[1] - _HIDDEN[0]) * u[:2]
    starts = u[2:4] * (1 - sides)
    ticks = (np.arange(side, dtype=np.float32) + 0.5) / side
    rows = (ticks >= starts[0]) & (ticks < starts[0] + sides[0])
    columns = (ticks >= starts[1]) & (ticks < starts[1] + sides[1])
    return rows[:, None] & columns[None] & (u[4] < probability)
