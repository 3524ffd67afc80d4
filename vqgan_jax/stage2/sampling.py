"""Sampling of codes: one prefill per condition, shared by its samples; then one compiled scan over codes.

    prefilled = prefill(params, condition, known)               logits of the next code and KV caches, a row per condition
    carry = replicate(prefilled, rows, unconditional_rows)      a row per sample, or two with guidance
    codes, log_probs, carry = decode_chunk(params, sampling, carry, requests, start, length, …)
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, UInt32

from nn_jax.code_transformer import CodeTransformer, unroll_for_decoding
from nn_jax.decoding import Sampling, decode
from vqgan_jax.stage2.condition import Condition


class Requests(NamedTuple):
    """Requested samples, one per row.

    Attributes:
      seeds: (seed, hash of the condition, index of the sample): a sample depends on these only, not on its batch.
      positions: of the codes, for their noise; see `nn_jax.decoding.decode`.
      known_codes, known_mask: codes that are fixed where the mask is true.
    """

    seeds: UInt32[Array, "b 3"]
    positions: Int[Array, "l"]
    known_codes: Int[Array, "b l"]
    known_mask: Bool[Array, "b l"]


class Programs(NamedTuple):
    """The three functions above."""

    prefill: Callable
    replicate: Callable
    decode_chunk: Callable


def compile_programs(module: CodeTransformer) -> Programs:
    """Compiles the three functions, once per shape; the values of `Sampling` are traced."""
    programs = pure_programs(module)
    return Programs(
        jax.jit(programs.prefill),
        jax.jit(programs.replicate),
        jax.jit(programs.decode_chunk, static_argnames=("max_candidates", "guided"), donate_argnums=2),
    )


def pure_programs(module: CodeTransformer) -> Programs:
    """Returns the three functions, not compiled."""

    def prefill(params, condition: Int[Array, "p c"], known: Int[Array, "p k"]):
        unrolled, params = unroll_for_decoding(module, params)
        return unrolled.apply({"params": params}, condition, known, method="prefill")

    def replicate(prefilled: Any, rows: Int[Array, "b"], unconditional_rows: Int[Array, "b"] | None):
        """Returns each sample's row of `prefilled`, followed by an unconditional row with guidance."""
        if unconditional_rows is not None:
            rows = jnp.stack([rows, unconditional_rows], axis=1).reshape(-1)
        carry = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), prefilled)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P("batch")), carry)

    def decode_chunk(params, sampling: Sampling, carry: Any, requests: Requests, start, max_candidates: int, guided: bool):
        """Samples the codes of `requests`, from index `start` on; returns them, their log-probabilities, and the carry."""
        unrolled, params = unroll_for_decoding(module, params)
        keys = jax.vmap(lambda s: functools.reduce(jax.random.fold_in, s[1:], jax.random.key(s[0])))(requests.seeds)
        return decode(
            lambda codes, index, caches: unrolled.apply({"params": params}, codes, index, caches, method="decode_step"),
            *carry,
            keys,
            sampling,
            positions=requests.positions,
            max_candidates=max_candidates,
            guided=guided,
            known_codes=requests.known_codes,
            known_mask=requests.known_mask,
            start=start,
        )

    return Programs(prefill, replicate, decode_chunk)


def seeds(condition: Condition, conditions: Sequence[Any], n: int, seed: int) -> UInt32[np.ndarray, "p n 3"]:
    """Returns `Requests.seeds` of `n` samples per condition; a repeated condition continues its sample indices."""
    counts = collections.Counter()
    rows = np.empty((len(conditions), n, 3), np.uint32)
    rows[..., 0] = seed
    for i, value in enumerate(conditions):
        rows[i, :, 1] = condition.seed(value)
        rows[i, :, 2] = np.arange(counts[value], counts[value] + n)
        counts[value] += n
    return rows


def padded_sizes(conditions: int, n: int, batch_size: int) -> tuple[int, int]:
    """Returns the rows of conditions and of samples to compile for: enough for any batch of `n` samples per condition.

    Both are powers of two, or `batch_size` itself, so that calls of other sizes seldom need a new compilation.
    """
    rows = min(conditions, max(batch_size - 2, 0) // n + 2)  # a batch may start in the middle of a condition's samples
    return _next_power_of_two(rows), min(batch_size, _next_power_of_two(conditions * n))


def _next_power_of_two(minimum: int) -> int:
    return 1 << (minimum - 1).bit_length()


# ---------------------------------------------------------------------------------------------------------------------
# Sliding windows


class Window(NamedTuple):
    """A window of a large image, of the size of the model's grid.

    Attributes:
      top, left: its corner, in codes.
      prefix: number of known codes at its start, in complete rows.
      known: mask of known codes after the prefix.
    """

    top: int
    left: int
    prefix: int
    known: Bool[np.ndarray, "l"]


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: int, known: Bool[np.ndarray, "H W"]
) -> Iterator[Window]:
    """Iterates over sliding windows of an image of `size` codes, in reading order.

    Codes of earlier windows are known, so a code is conditioned on the codes above and left of it within its window
    (arXiv 2012.09841, section 3.3 and figure 3).

    Args:
      stride: codes between two windows.
      known: mask of codes that are fixed.
    """
    known = known.copy()
    height, width = window
    for top in _offsets(size[0], height, stride):
        for left in _offsets(size[1], width, stride):
            inside = known[top : top + height, left : left + width]
            rows = int(np.argmin(inside.all(axis=1))) if not inside.all() else height
            prefix = rows * width  # complete rows, so that few shapes are compiled
            yield Window(top, left, prefix, inside.reshape(-1)[prefix:].copy())
            inside[:] = True


def _offsets(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]
