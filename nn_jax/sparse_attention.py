"""Attention in the patterns of `nn_jax.attention_patterns`, at the cost of the tokens that a pattern attends to.

Lines of the grid (its rows, or its columns for "column") attend to the condition, to themselves and to a few lines before
them. Blocks of lines are computed together.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from nn_jax.attention import NAME, attend, platform
from nn_jax.attention_patterns import attention_mask


def attend_in_pattern(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t n h"],
    v: Float[Array, "b t n h"],
    *,
    pattern: str,
    condition_length: int,
    grid: tuple[int, int],
    window: int,
) -> Float[Array, "b t n h"]:
    """Computes the attention of a stream of condition tokens and the first codes of a grid.

    Equals attention with the mask `attention_mask(pattern, condition_length, grid, window)`, cut to the stream. Scores are
    computed between codes and the condition, and between the codes of a block of lines and those of the block and the lines
    before: for DALL-E's 32 x 32 codes and 256 tokens 320 a code for "row", 288 for "column" and 704 for "conv", instead of
    1,280. The softmax is over both, in float32.

    Args:
      pattern: one of `nn_jax.attention_patterns.PATTERNS`.
      condition_length: number of condition tokens c, at least 1.
      grid: rows and columns of codes; c <= t <= c + rows * columns.
      window: side of the window of a pattern that has one.
    """
    if pattern == "dense" or q.shape[1] == condition_length:
        return attend(q, k, v, causal=True)
    compute = functools.partial(
        _attend_in_lines, pattern=pattern, condition_length=condition_length, grid=grid, window=window
    )
    if platform() != "cpu":  # where memory is scarce, the backward pass recomputes the scores
        compute = jax.checkpoint(compute)
    return checkpoint_name(compute(q, k, v), NAME)


def _attend_in_lines(q, k, v, *, pattern: str, condition_length: int, grid: tuple[int, int], window: int):
    mask = attention_mask(pattern, condition_length, grid, window)[condition_length:, condition_length:]
    transposed = pattern == "column"
    mask, lines_before = _mask_of_blocks(mask, grid, transposed)
    num_blocks = len(mask)
    num_codes = q.shape[1] - condition_length
    missing = grid[0] * grid[1] - num_codes

    def codes_in_lines(x):  # [b, n, codes, h], in the order of lines
        codes = jnp.pad(x[:, condition_length:], ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        if transposed:
            codes = codes.reshape(*codes.shape[:2], *grid, -1).swapaxes(2, 3).reshape(codes.shape)
        return codes

    def in_blocks(x):
        return x.reshape(*x.shape[:2], num_blocks, -1, *x.shape[3:])

    def with_lines_before(x):
        size, before = x.shape[2] // num_blocks, lines_before * grid[0 if transposed else 1]
        padded = jnp.pad(x, ((0, 0), (0, 0), (before, 0), (0, 0)))
        return jnp.stack([padded[:, :, i * size : (i + 1) * size + before] for i in range(num_blocks)], axis=2)

    condition = [x[:, :condition_length] for x in (q, k, v)]
    k_condition, v_condition = (x.transpose(0, 2, 1, 3) for x in condition[1:])
    q_codes, k_codes, v_codes = (codes_in_lines(x) for x in (q, k, v))
    k_near, v_near = with_lines_before(k_codes), with_lines_before(v_codes)
    float32, scale = {"preferred_element_type": jnp.float32}, q.shape[-1] ** -0.5
    far = jnp.einsum("bnqh,bnsh->bnqs", q_codes, k_condition, **float32) * scale
    near = jnp.einsum("bnlqh,bnlsh->bnlqs", in_blocks(q_codes), k_near, **float32) * scale
    near = jnp.where(mask, near, jnp.finfo(jnp.float32).min)
    largest = jnp.maximum(in_blocks(jnp.max(far, axis=-1)), jnp.max(near, axis=-1))
    largest = jax.lax.stop_gradient(largest)[..., None]
    far = jnp.exp(far - largest.reshape(*far.shape[:3], 1))
    near = jnp.exp(near - largest)
    total = jnp.sum(far, axis=-1) + jnp.sum(near, axis=-1).reshape(far.shape[:3])
    y = jnp.einsum("bnlqs,bnlsh->bnlqh", near.astype(v.dtype), v_near, **float32).reshape(q_codes.shape)
    y = (y + jnp.einsum("bnqs,bnsh->bnqh", far.astype(v.dtype), v_condition, **float32)) / total[..., None]
    y = y.astype(v.dtype)
    if transposed:
        y = y.reshape(*y.shape[:2], *grid[::-1], -1).swapaxes(2, 3).reshape(y.shape)
    return jnp.concatenate([attend(*condition, causal=True), y.transpose(0, 2, 1, 3)[:, :num_codes]], axis=1)


def _mask_of_blocks(mask: np.ndarray, grid: tuple[int, int], transposed: bool) -> tuple[np.ndarray, int]:
    """Converts a mask between codes to a mask [blocks, queries of a block, keys] between blocks of lines.

    The keys of a block are its own codes, and those of a few lines before.

    Returns it, and the number of lines before.
    """
    mask = mask.reshape(*grid, *grid)
    mask = mask.transpose(1, 0, 3, 2) if transposed else mask  # [line, place, line of the key, place of the key]
    count, length = mask.shape[:2]
    attended = mask.any(axis=(1, 3))
    before = max(line - int(np.argmax(attended[line])) for line in range(count))
    # Blocks as long as what they read before them: keys are copied at most twice.
    lines = next(n for n in range(max(before, 1), count + 1) if count % n == 0)
    padded = np.pad(mask, ((0, 0), (0, 0), (before, 0), (0, 0)))
    blocks = [padded[i : i + lines, :, i : i + lines + before] for i in range(0, count, lines)]
    return np.stack(blocks).reshape(len(blocks), lines * length, -1), before
