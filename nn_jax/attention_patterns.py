"""Masks of sparse causal attention on condition tokens followed by a grid of codes (arXiv 2102.12092, figure 11).

In all patterns condition tokens attend to earlier condition tokens, and codes attend to all condition tokens. The patterns
differ in the attention between codes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

PATTERNS = ("dense", "row", "column", "conv", "window", "torus")


def attention_mask(
    pattern: str, condition_length: int, grid: tuple[int, int], window: int
) -> Bool[np.ndarray, "stream stream"]:
    """Makes the attention mask of a pattern: True where a query token (row) may attend to a key token (column).

    Args:
      pattern: attention between codes. "dense": all earlier codes. "row": the `columns` previous codes in reading order, the
        last of which is the code above. "column": the codes above. "conv": the earlier codes in a square window, which
        wraps around the sides of the grid like "row". "window": those in a window that ends at the sides. "torus": those in
        a window that goes on at the opposite side.
      condition_length: number of condition tokens.
      grid: numbers of rows and columns of codes.
      window: side of the window of "conv", "window" and "torus".
    """
    rows, columns = grid
    length = condition_length + rows * columns
    causal = np.tri(length, dtype=bool)
    if pattern == "dense":
        return causal
    codes = np.arange(rows * columns)
    distance = codes[:, None] - codes[None, :]  # in reading order
    if pattern == "row":
        attended = distance <= columns
    elif pattern == "column":
        attended = distance % columns == 0
    elif pattern == "conv":
        reach = window // 2
        offsets = [up * columns + left for up in range(reach + 1) for left in range(-reach, reach + 1)]
        attended = np.isin(distance, offsets)
    elif pattern in ("window", "torus"):
        places = np.stack(np.divmod(codes, columns))
        offsets = np.abs(places[:, :, None] - places[:, None, :])  # [2, codes, codes]: of rows, of columns
        if pattern == "torus":
            offsets = np.minimum(offsets, np.array(grid)[:, None, None] - offsets)
        attended = np.all(offsets <= window // 2, axis=0)
    else:
        raise ValueError(f"pattern {pattern!r}: it must be one of {', '.join(PATTERNS)}")
    mask = np.ones((length, length), bool)
    mask[condition_length:, condition_length:] = attended
    return causal & mask


def attended_codes(pattern: str, grid: tuple[int, int], window: int) -> Int32[np.ndarray, "codes most"] | None:
    """Lists the codes that each code attends to, padded with -1; None for "dense", where it attends to all before it."""
    if pattern == "dense":
        return None
    mask = attention_mask(pattern, 0, grid, window)
    attended = np.full((len(mask), mask.sum(axis=1).max()), -1, np.int32)
    for row, visible in zip(attended, mask, strict=True):
        codes = np.flatnonzero(visible)
        row[: len(codes)] = codes
    return attended


def assign_patterns(patterns: Sequence[str], last: str, depth: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the distinct patterns of `depth` blocks, and the index of each block's pattern.

    Args:
      patterns: patterns that repeat over the blocks.
      last: pattern of the last block; "": no exception.
    """
    blocks = [patterns[index % len(patterns)] for index in range(depth)]
    if last:
        blocks[-1] = last
    distinct = tuple(dict.fromkeys(blocks))
    return distinct, tuple(distinct.index(pattern) for pattern in blocks)
