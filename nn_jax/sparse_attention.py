"""Attention in the patterns of `nn_jax.attention_patterns`, at the cost of the tokens that a pattern attends to.

Lines of the grid (its rows, or its columns for "column") attend to the condition, to themselves and to a few lines before.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from nn_jax.attention import NAME, attend
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
    """Computes the attention of a stream of condition tokens and all codes but the last.

    Equals attention with the mask `attention_mask(pattern, condition_length, grid, window)`. Scores are computed between
    codes and the condition, and between a line and itself and the lines before that its codes attend to: for DALL-E's
    32 x 32 codes and 256 tokens 288 to 480 a code instead of 1,280. The softmax is over both, in float32.

    Args:
      pattern: one of `nn_jax.attention_patterns.PATTERNS`.
      condition_length: number of condition tokens c, at least 1.
      grid: rows and columns of codes; t = c + rows * columns - 1.
      window: side of the window of "conv".
    """
    if pattern == "dense":
        return attend(q, k, v, causal=True)
    mask = attention_mask(pattern, condition_length, grid, window)[condition_length:, condition_length:]
    transposed = pattern == "column"
    mask, lines_before = _mask_of_lines(mask, grid, transposed)

    def into_lines(x):
        codes = jnp.pad(x[:, condition_length:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        codes = codes.reshape(len(x), *grid, *x.shape[2:])
        return codes.swapaxes(1, 2) if transposed else codes

    def with_lines_before(x):  # [b, lines, (lines before + 1) * length of a line, n, h]
        padded = jnp.pad(x, ((0, 0), (lines_before, 0), (0, 0), (0, 0), (0, 0)))
        return jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(lines_before + 1)], axis=2)

    condition = [x[:, :condition_length] for x in (q, k, v)]
    of_condition = attend(*condition, causal=True)
    q_lines, k_lines, v_lines = into_lines(q), with_lines_before(into_lines(k)), with_lines_before(into_lines(v))
    float32 = {"preferred_element_type": jnp.float32}
    to_condition = jnp.einsum("blqnh,bsnh->bnlqs", q_lines, condition[1], **float32)
    to_lines = jnp.einsum("blqnh,blsnh->bnlqs", q_lines, k_lines, **float32)
    scores = jnp.concatenate([to_condition, jnp.where(mask, to_lines, jnp.finfo(jnp.float32).min)], axis=-1)
    scores = scores * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.moveaxis(jnp.sum(weights, axis=-1), 1, -1)[..., None]
    weights = weights.astype(v.dtype)
    y = jnp.einsum("bnlqs,bsnh->blqnh", weights[..., :condition_length], condition[2], **float32)
    y += jnp.einsum("bnlqs,blsnh->blqnh", weights[..., condition_length:], v_lines, **float32)
    y = checkpoint_name((y / total).astype(v.dtype), NAME)
    y = (y.swapaxes(1, 2) if transposed else y).reshape(len(q), -1, *q.shape[2:])[:, :-1]
    return jnp.concatenate([of_condition, y], axis=1)


def _mask_of_lines(mask: np.ndarray, grid: tuple[int, int], transposed: bool) -> tuple[np.ndarray, int]:
    """Converts a mask between codes to a mask [lines, length, (lines before + 1) * length] between lines.

    Returns it, and the number of lines before a line that it attends to.
    """
    mask = mask.reshape(*grid, *grid)
    mask = mask.transpose(1, 0, 3, 2) if transposed else mask  # [line, place, line of the key, place of the key]
    count = len(mask)
    attended = mask.any(axis=(1, 3))
    lines_before = max(line - int(np.argmax(attended[line])) for line in range(count))
    padded = np.pad(mask, ((0, 0), (0, 0), (lines_before, 0), (0, 0)))
    near = np.stack([padded[line, :, line : line + lines_before + 1] for line in range(count)])
    return near.reshape(count, mask.shape[1], -1), lines_before
