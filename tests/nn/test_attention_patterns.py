"""The patterns of the paper, against sentences about single tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax import sparse_attention
from nn_jax.attention_patterns import assign_patterns, attended_codes, attention_mask
from nn_jax.sparse_attention import attend_in_pattern

RNG = np.random.default_rng(0)
WINDOWS = [("window", 3), ("torus", 3)]

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
    reach = window // 2
    if pattern in ("window", "torus"):
        distances = abs(a // COLUMNS - b // COLUMNS), abs(a % COLUMNS - b % COLUMNS)
        return all(min(d, 4 - d) <= reach if pattern == "torus" else d <= reach for d in distances)
    # A square around the token, on a grid whose rows go on in the next ones.
    return any(
        b == (a // COLUMNS - up) * COLUMNS + a % COLUMNS + aside
        for up in range(-reach, reach + 1)
        for aside in range(-reach, reach + 1)
    )


@pytest.mark.parametrize("pattern, window", [("dense", 1), ("row", 1), ("column", 1), ("conv", 3), ("conv", 5), *WINDOWS])
def test_masks_are_what_the_paper_draws(pattern, window):
    mask = attention_mask(pattern, CONDITION, (ROWS, COLUMNS), window)
    n = CONDITION + ROWS * COLUMNS
    assert mask.tolist() == [[attends(pattern, q, k, window) for k in range(n)] for q in range(n)]


@pytest.mark.parametrize("pattern, window, most", [("row", 1, 5), ("column", 1, 4), ("conv", 3, 5), ("conv", 5, 11)])
def test_codes_that_a_code_attends_to_are_few(pattern, window, most):
    """With a window of 5 on 4 columns, two of 13 positions wrap around onto others."""
    listed = attended_codes(pattern, (ROWS, COLUMNS), window)
    assert listed.shape == (ROWS * COLUMNS, most)
    for query, codes in enumerate(listed):
        expected = [k for k in range(16) if attends(pattern, CONDITION + query, CONDITION + k, window)]
        assert codes[codes >= 0].tolist() == expected
    assert attended_codes("dense", (ROWS, COLUMNS), 1) is None


def test_an_unknown_pattern_is_named():
    with pytest.raises(ValueError, match="'diagonal': it must be one of dense, row, column, conv"):
        attention_mask("diagonal", 1, (2, 2), 3)


def test_blocks_take_patterns_in_turn_and_the_last_its_own():
    distinct, index = assign_patterns(("row", "column", "row", "row"), "conv", 7)
    assert [distinct[i] for i in index] == ["row", "column", "row", "row", "row", "column", "conv"]
    assert assign_patterns(("dense",), "", 3) == (("dense",), (0, 0, 0))
    assert np.unique(index).tolist() == [0, 1, 2]


@pytest.mark.parametrize("pattern, grid, window", [
    ("row", (4, 3), 0), ("column", (4, 3), 0), ("column", (3, 5), 0), ("conv", (4, 5), 3), ("conv", (5, 4), 5),
    ("dense", (2, 3), 0), ("window", (4, 5), 3), ("torus", (4, 3), 3),
])  # fmt: skip
@pytest.mark.parametrize("missing", [1, 7, 0, None], ids="missing {}".format)
def test_attention_in_a_pattern_is_attention_with_its_mask(pattern, grid, window, missing):
    """Of all codes but the last, as in training, and of other numbers, as in a prefill; None: of the condition alone."""
    missing = grid[0] * grid[1] if missing is None else min(missing, grid[0] * grid[1])
    length = 3 + grid[0] * grid[1] - missing
    inputs = [jnp.asarray(RNG.standard_normal((2, length, 2, 4)), jnp.float32) for _ in range(3)]
    mask = attention_mask(pattern, 3, grid, window)[:length, :length]

    def sparse(q, k, v):
        return attend_in_pattern(q, k, v, pattern=pattern, condition_length=3, grid=grid, window=window)

    def masked(q, k, v):
        scores = jnp.where(mask, jnp.einsum("btnh,bsnh->bnts", q, k) / 2, -jnp.inf)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, -1), v)

    def results(attend):
        gradients = jax.grad(lambda *inputs: jnp.sum(jnp.sin(attend(*inputs))), (0, 1, 2))
        return jax.jit(lambda *inputs: (attend(*inputs), gradients(*inputs)))(*inputs)

    for x, y in zip(jax.tree.leaves(results(sparse)), jax.tree.leaves(results(masked)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("pattern, near", [("row", 64), ("column", 32), ("conv", 448)])
def test_a_pattern_of_dall_e_costs_what_it_attends_to(pattern, near, monkeypatch):
    """Scores between a code and the condition, and the `near` keys of its block; no larger array in any pass.

    On accelerators, no scores are kept between the passes.
    """
    options = {"pattern": pattern, "condition_length": 256, "grid": (32, 32), "window": 11}
    x = jax.ShapeDtypeStruct((1, 1279, 2, 8), jnp.bfloat16)
    attention = functools.partial(attend_in_pattern, **options)
    program = jax.make_jaxpr(lambda *inputs: jax.vjp(attention, *inputs)[1](inputs[0]))(x, x, x)
    sizes = {v.aval.size for e in program.eqns for v in e.outvars}
    assert {2 * 1024 * 256, 2 * 1024 * near} <= sizes and max(sizes) == 2 * 1024 * max(256, near)
    monkeypatch.setattr(sparse_attention, "platform", lambda: "tpu")
    kept = jax.eval_shape(lambda *inputs: jax.vjp(attention, *inputs)[1], x, x, x)
    assert max(leaf.size for leaf in jax.tree.leaves(kept) if leaf.dtype != bool) == x.size  # and the mask
