"""The patterns of the paper, against sentences about single tokens."""

import numpy as np
import pytest

from dalle_jax import attention

TEXT, ROWS, COLUMNS = 6, 4, 4  # the paper's own example, figure 11


def looks(pattern: str, query: int, key: int, kernel: int) -> bool:
    """Whether token `query` of the stream looks at token `key`."""
    if key > query:
        return False
    if key < TEXT or pattern == "dense":
        return True
    a, b = query - TEXT, key - TEXT
    if pattern == "row":  # "the previous 5 image tokens in raster order", the last the one above
        return a - b <= COLUMNS
    if pattern == "column":
        return a % COLUMNS == b % COLUMNS
    # A square around the token, on a picture whose rows go on in the next ones.
    reach = kernel // 2
    return any(
        b == (a // COLUMNS - up) * COLUMNS + a % COLUMNS + aside
        for up in range(-reach, reach + 1)
        for aside in range(-reach, reach + 1)
    )


@pytest.mark.parametrize("pattern, kernel", [("dense", 1), ("row", 1), ("column", 1), ("conv", 3), ("conv", 5)])
def test_masks_are_what_the_paper_draws(pattern, kernel):
    found = attention.mask(pattern, TEXT, ROWS, COLUMNS, kernel)
    n = TEXT + ROWS * COLUMNS
    assert found.tolist() == [[looks(pattern, q, k, kernel) for k in range(n)] for q in range(n)]


def test_an_unknown_pattern_is_named():
    with pytest.raises(ValueError, match="'diagonal': it must be one of dense, row, column, conv"):
        attention.mask("diagonal", 1, 2, 2, 3)


def test_blocks_take_patterns_in_turn_and_the_last_its_own():
    distinct, kinds = attention.kinds(("row", "column", "row", "row"), "conv", 7)
    assert [distinct[kind] for kind in kinds] == ["row", "column", "row", "row", "row", "column", "conv"]
    assert attention.kinds(("dense",), "", 3) == (("dense",), (0, 0, 0))
    assert np.unique(kinds).tolist() == [0, 1, 2]
