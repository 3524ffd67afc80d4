"""The patterns of the paper, against sentences about single tokens."""

import numpy as np
import pytest

from nn_jax.attention_patterns import assign_patterns, attention_mask

CONDITION, ROWS, COLUMNS = 6, 4, 4  # the paper's own example, figure 11


def attends(pattern: str, query: int, key: int, window: int) -> bool:
    """Whether token `query` of the stream attends to token `key`."""
    if key > query:
        return False
    if key < CONDITION or pattern == "dense":
        return True
    a, b = query - CONDITION, key - CONDITION
    if pattern == "row":  # "the previous 5 image tokens in raster order", the last the one above
        return a - b <= COLUMNS
    if pattern == "column":
        return a % COLUMNS == b % COLUMNS
    # A square around the token, on a grid whose rows go on in the next ones.
    reach = window // 2
    return any(
        b == (a // COLUMNS - up) * COLUMNS + a % COLUMNS + aside
        for up in range(-reach, reach + 1)
        for aside in range(-reach, reach + 1)
    )


@pytest.mark.parametrize("pattern, window", [("dense", 1), ("row", 1), ("column", 1), ("conv", 3), ("conv", 5)])
def test_masks_are_what_the_paper_draws(pattern, window):
    mask = attention_mask(pattern, CONDITION, (ROWS, COLUMNS), window)
    n = CONDITION + ROWS * COLUMNS
    assert mask.tolist() == [[attends(pattern, q, k, window) for k in range(n)] for q in range(n)]


def test_an_unknown_pattern_is_named():
    with pytest.raises(ValueError, match="'diagonal': it must be one of dense, row, column, conv"):
        attention_mask("diagonal", 1, (2, 2), 3)


def test_blocks_take_patterns_in_turn_and_the_last_its_own():
    distinct, index = assign_patterns(("row", "column", "row", "row"), "conv", 7)
    assert [distinct[i] for i in index] == ["row", "column", "row", "row", "row", "column", "conv"]
    assert assign_patterns(("dense",), "", 3) == (("dense",), (0, 0, 0))
    assert np.unique(index).tolist() == [0, 1, 2]
