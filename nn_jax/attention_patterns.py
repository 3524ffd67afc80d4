"""Sparse causal attention over a stream of condition tokens followed by a grid of codes (arXiv 2102.12092, figure 11).

In every pattern condition tokens attend to those before them, and a code to the whole condition; patterns differ in which
earlier codes a code attends to.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

PATTERNS = ("dense", "row", "column", "conv")


def attention_mask(
    pattern: str, condition_length: int, grid: tuple[int, int], window: int
) -> Bool[np.ndarray, "stream stream"]:
    """Makes the attention mask of a pattern: True where a token (row) may attend to another (column).

    Args:
      pattern: "dense": to all before it. "row": to as many codes before it, in reading order, as a row has, so that the last
        one is that above. "column": to those above it. "conv": to those before it in a square around it, which wraps around
        the grid's sides as "row" does.
      grid: rows and columns of codes, which follow the `condition_length` tokens.
      window: side of the square of "conv".
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
    else:
        raise ValueError(f"pattern {pattern!r}: it must be one of {', '.join(PATTERNS)}")
    mask = np.ones((length, length), bool)
    mask[condition_length:, condition_length:] = attended
    return causal & mask


def patterns_of_blocks(patterns: Sequence[str], last: str, depth: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the distinct patterns of `depth` blocks, and for each block the index of its own.

    Blocks take `patterns` in turn; `last`, where it is one, is that of the last block.
    """
    blocks = [patterns[number % len(patterns)] for number in range(depth)]
    if last:
        blocks[-1] = last
    distinct = tuple(dict.fromkeys(blocks))
    return distinct, tuple(distinct.index(pattern) for pattern in blocks)
