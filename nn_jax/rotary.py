"""Rotary position embedding (arXiv 2104.09864) on a grid of patches or codes: rows turn half of a head, columns the other.

Each half of a head's channels has pairs (2i, 2i + 1) that turn by angles in proportion to one coordinate, as in EVA-02
(arXiv 2303.11331), the Perception Encoder (arXiv 2504.13181) and LlamaGen (arXiv 2406.06525).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

_BASE = 10000.0  # arXiv 2104.09864, section 3.2.2


def grid_angles(
    grid: tuple[int, int], head_dim: int, *, columns_first: bool = False, offset: float = 0.0, stretch: float = 1.0
) -> Float32[np.ndarray, "places pairs"]:
    """Computes the angle of each pair of channels, for places in row-major order.

    Args:
      grid: numbers of rows and columns.
      head_dim: number of channels of a head, a multiple of 4.
      columns_first: whether the first half of the pairs turns by the column, and the second by the row.
      offset: coordinate of the first row and column.
      stretch: factor of all coordinates, such as the ratio of the side of the grid of pretraining to the side of this one.
    """
    frequencies = _BASE ** -(np.arange(head_dim // 4) / (head_dim // 4))
    rows, columns = ((x.reshape(-1, 1) + offset) * stretch * frequencies for x in np.indices(grid))
    return np.concatenate((columns, rows) if columns_first else (rows, columns), axis=1).astype(np.float32)


def turns(angles: Float[Array, "*places pairs"]) -> Float32[Array, "*places pairs 2"]:
    """Returns the cosines and sines of angles, by which `rotate` turns."""
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotate(x: Float[Array, "b t n h"], rotation: Float32[Array, "#b t pairs 2"]) -> Float[Array, "b t n h"]:
    """Turns the pairs of channels of queries or keys by the cosines and sines of their tokens' angles, in float32.

    Where both are zero, the result is zero, too: a token without a position, whose scores are all 0.
    """
    cos, sin = rotation[:, :, None, :, 0], rotation[:, :, None, :, 1]
    even, odd = x[..., ::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
