"""A differentiable rasteriser: antialiased coverage of strokes and polygons, and shapes composited front to back.

Positions are (x, y) from the centre of the picture, in units of its shorter side. Coverage is a sigmoid of the distance to
the edge in pixels, so that gradients reach every shape whose edge is near. One scan composites all shapes, some at a time,
and recomputes them in the backward pass: only the composited picture is stored for each part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from vqgan_jax.guided.options import parse_colour

Points = Array | np.ndarray
TRANSPARENT = "transparent"
POSITION = 0.1  # position of a parameter of 1: a step of 0.1 is a hundredth of the shorter side
_SOFTNESS = 0.5  # pixels of distance in a unit of the sigmoid
_AT_ONCE = 4  # shapes whose coverages are in memory
_EPS = 1e-6


def pixel_positions(size: tuple[int, int]) -> Float32[np.ndarray, "2 H W"]:
    """Returns x and y of the centres of the pixels."""
    y, x = np.meshgrid(*((np.arange(side) + 0.5 - side / 2) / min(size) for side in size), indexing="ij")
    return np.stack([x, y]).astype(np.float32)


def soften(depth: Float[Array, "H W"], size: tuple[int, int]) -> Float[Array, "H W"]:
    """Converts the depth below an edge, negative outside, to coverage in [0, 1]."""
    return jax.nn.sigmoid(depth * min(size) / _SOFTNESS)


def distance_to_segments(
    p: Float[Points, "2 H W"], a: Float[Points, "s 2"], b: Float[Points, "s 2"]
) -> Float[Array, "H W"]:
    """Computes the distance to the nearest of the line segments from `a` to `b`."""
    x, y, (ax, ay), (bx, by) = p[0][None], p[1][None], a.T[..., None, None], b.T[..., None, None]
    dx, dy = bx - ax, by - ay
    along = jnp.clip(((x - ax) * dx + (y - ay) * dy) / jnp.maximum(dx**2 + dy**2, _EPS), 0, 1)
    squares = (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2
    return jnp.sqrt(jnp.min(squares, axis=0) + _EPS**2)


def depth_in_polygon(p: Float[Points, "2 H W"], corners: Float[Points, "k 2"]) -> Float[Array, "H W"]:
    """Computes the distance to the edge of a polygon, negative outside, by the even-odd rule."""
    a, b = corners, jnp.roll(corners, -1, axis=0)
    x, y, (ax, ay), (bx, by) = p[0][None], p[1][None], a.T[..., None, None], b.T[..., None, None]
    rises = (ay > y) != (by > y)
    crossing = ax + (bx - ax) * (y - ay) / jnp.where(ay == by, 1.0, by - ay)
    is_inside = jnp.sum(rises & (x < crossing), axis=0) % 2 == 1
    return jnp.where(is_inside, 1.0, -1.0) * distance_to_segments(p, a, b)


def composite(
    opacity: Callable[[Any], Float[Array, "H W"]],
    shapes: Any,
    colours: Float[Array, "n 3"],
    size: tuple[int, int],
    ground: str,
) -> Float[Array, "H W c"]:
    """Composites shapes, the first in front, over a background.

    Args:
      opacity: opacity of one shape at each pixel.
      shapes: tree of arrays with leading axis n.
      ground: colour of the background, or "transparent", for RGBA.
    """
    n = len(colours)
    at_once = max(k for k in range(1, _AT_ONCE + 1) if n % k == 0)

    @jax.checkpoint
    def body(carry, chunk):
        pixels, light = carry  # composited so far, and what they let through
        alphas = jax.vmap(opacity)(chunk[0])[..., None]
        through = jnp.cumprod(1 - alphas, axis=0)
        visible = alphas * jnp.concatenate([jnp.ones_like(through[:1]), through[:-1]])
        return (pixels + light * jnp.sum(visible * chunk[1][:, None, None], axis=0), light * through[-1]), None

    chunks = jax.tree.map(lambda x: x.reshape(n // at_once, at_once, *x.shape[1:]), (shapes, colours))
    start = (jnp.zeros((*size, 3)), jnp.ones((*size, 1)))
    (pixels, light), _ = jax.lax.scan(body, start, chunks)
    if ground == TRANSPARENT:
        return jnp.concatenate([pixels / jnp.maximum(1 - light, _EPS), 1 - light], axis=-1)
    return pixels + light * parse_colour(ground)[None, None]


def check_ground(ground: str) -> None:
    """Raises ConfigError if the background is neither a colour nor "transparent"."""
    if ground != TRANSPARENT:
        parse_colour(ground)


def spread(size: tuple[int, int], points: Float32[np.ndarray, "*n 2"]) -> Float32[np.ndarray, "*n 2"]:
    """Converts points of the unit square to parameters of positions all over a picture."""
    sides = np.array(size[::-1], np.float32) / min(size)
    return (points - np.float32(0.5)) * sides / np.float32(POSITION)
