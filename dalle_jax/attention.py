"""Where a token of the stream may look: everywhere before it, or along a row, a column or a neighbourhood of the picture.

The patterns are those of DALL·E (arXiv 2102.12092, figure 11). In every one of them text looks at the text before it, and a
picture's token at the whole text; they differ in which earlier tokens of the picture it sees.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

PATTERNS = ("dense", "row", "column", "conv")


def mask(pattern: str, text: int, rows: int, columns: int, kernel: int) -> Bool[np.ndarray, "stream stream"]:
    """True where a token (row of the matrix) may look.

    Args:
      pattern: "dense": at all that comes before. "row": at the `columns` tokens before, in reading order, so that the last
        one seen is that above. "column": at those above. "conv": at those before it in a square of `kernel` around it, which
        wraps around the picture's sides as "row" does.
      text: tokens of text, which come first; then `rows` x `columns` of the picture.
    """
    length = text + rows * columns
    causal = np.tri(length, dtype=bool)
    if pattern == "dense":
        return causal
    places = np.arange(rows * columns)
    back = places[:, None] - places[None, :]  # how far behind a token another one lies
    if pattern == "row":
        seen = back <= columns
    elif pattern == "column":
        seen = back % columns == 0
    elif pattern == "conv":
        reach = kernel // 2
        offsets = [up * columns + aside for up in range(reach + 1) for aside in range(-reach, reach + 1)]
        seen = np.isin(back, offsets)
    else:
        raise ValueError(f"pattern {pattern!r}: it must be one of {', '.join(PATTERNS)}")
    everything = np.ones((length, length), bool)
    everything[text:, text:] = seen
    return causal & everything


def kinds(patterns: Sequence[str], last: str, depth: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """`(the distinct patterns, the number of each block's)`: `patterns` in turn, and `last`, where it is one, at the end."""
    blocks = [patterns[number % len(patterns)] for number in range(depth)]
    if last:
        blocks[-1] = last
    distinct = tuple(dict.fromkeys(blocks))
    return distinct, tuple(distinct.index(pattern) for pattern in blocks)
