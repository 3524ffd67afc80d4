"""Rotary position embedding (arXiv 2104.09864) of a square grid of patches: rows turn one half of a head, columns the other.

Each half of a head's channels has pairs (2i, 2i + 1) that turn by angles in proportion to one coordinate, as in EVA-02
(arXiv 2303.11331) and the Perception Encoder (arXiv 2504.13181).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

_BASE = 10000.0  # arXiv 2104.09864, section 3.2.2


def grid_angles(
    side: int, head_dim: int, columns_first: bool, offset: float, reference: int
) -> Float32[np.ndarray, "patches pairs"]:
    """Computes the angle of each pair of channels, for patches in row-major order.

    Args:
      side: side of the grid, in patches.
      head_dim: number of channels of a head, a multiple of 4.
      columns_first: whether the first half of the pairs turns by the column, and the second by the row.
      offset: coordinate of the first row and column.
      reference: side of the grid to whose coordinates those of the patches are stretched.
    """
    frequencies = _BASE ** -(np.arange(head_dim // 4) / (head_dim // 4))
    angles = (np.arange(side) + offset)[:, None] * (reference / side) * frequencies
    rows, columns = (np.broadcast_to(x, (side, side, head_dim // 4)) for x in (angles[:, None], angles[None]))
    halves = (columns, rows) if columns_first else (rows, columns)
    return np.concatenate(halves, axis=-1).reshape(side * side, -1).astype(np.float32)


def rotate(x: Float[Array, "b t n h"], angles: Float32[Array, "#b t pairs"]) -> Float[Array, "b t n h"]:
    """Turns the pairs of channels of queries or keys by the angles of their tokens."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    even, odd = x[..., ::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
