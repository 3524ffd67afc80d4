"""Sampling of codes: one prefill per condition, shared by all samples of the condition, then a compiled scan.

    prefilled = prefill(params, condition, known)               logits of the next code and KV caches, one row per condition
    carry = replicate(prefilled, rows, unconditional_rows)      one row per sample, or two with guidance
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
    """A batch of samples to draw, one per row.

    Attributes:
      seeds: (seed, hash of the condition, sample index), which determine the noise independently of the batch.
      positions: positions of the codes, which seed their noise; see `nn_jax.decoding.decode`.
      known_codes, known_mask: codes that are fixed where the mask is True.
    """

    seeds: UInt32[Array, "b 3"]
    positions: Int[Array, "l"]
    known_codes: Int[Array, "b l"]
    known_mask: Bool[Array, "b l"]


class Programs(NamedTuple):
    """The three functions `prefill`, `replicate` and `decode_chunk` of this module's docstring."""

    prefill: Callable
    replicate: Callable
    decode_chunk: Callable


def compile_programs(module: CodeTransformer) -> Programs:
    """Jits the three functions of `Programs`. Values of `Sampling` are traced, so changing them does not recompile."""
    programs = build_programs(module)
    return Programs(
        jax.jit(programs.prefill),
        jax.jit(programs.replicate),
        jax.jit(programs.decode_chunk, static_argnames=("filtered", "guided"), donate_argnums=2),
    )


def build_programs(module: CodeTransformer) -> Programs:
    """Builds the three functions of `Programs` without jit."""

    def prefill(params, condition: Int[Array, "p c"], known: Int[Array, "p k"]):
        unrolled, params = unroll_for_decoding(module, params)
        return unrolled.apply({"params": params}, condition, known, method="prefill")

    def replicate(prefilled: Any, rows: Int[Array, "b"], unconditional_rows: Int[Array, "b"] | None):
        """Gathers the row of `prefilled` for each sample, followed by an unconditional row with guidance."""
        if unconditional_rows is not None:
            rows = jnp.stack([rows, unconditional_rows], axis=1).reshape(-1)
        carry = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), prefilled)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P("batch")), carry)

    def decode_chunk(params, sampling: Sampling, carry: Any, requests: Requests, start, filtered: bool, guided: bool):
        """Samples the codes of `requests` from index `start`; returns codes, log-probabilities and the carry."""
        unrolled, params = unroll_for_decoding(module, params)
        keys = jax.vmap(lambda s: functools.reduce(jax.random.fold_in, s[1:], jax.random.key(s[0])))(requests.seeds)
        return decode(
            lambda codes, index, caches: unrolled.apply({"params": params}, codes, index, caches, method="decode_step"),
            *carry,
            keys,
            sampling,
            positions=requests.positions,
            filtered=filtered,
            guided=guided,
            known_codes=requests.known_codes,
            known_mask=requests.known_mask,
            start=start,
        )

    return Programs(prefill, replicate, decode_chunk)


def make_seeds(condition: Condition, conditions: Sequence[Any], n: int, seed: int) -> UInt32[np.ndarray, "p n 3"]:
    """Returns `Requests.seeds` of `n` samples per condition. Repeated conditions continue the sample indices."""
    counts = collections.Counter()
    rows = np.empty((len(conditions), n, 3), np.uint32)
    rows[..., 0] = seed
    for i, value in enumerate(conditions):
        rows[i, :, 1] = condition.seed(value)
        rows[i, :, 2] = np.arange(counts[value], counts[value] + n)
        counts[value] += n
    return rows


def padded_sizes(conditions: int, n: int, batch_size: int) -> tuple[int, int]:
    """Returns the padded numbers of conditions and samples per batch, for which programs are compiled.

    Both numbers are powers of two or `batch_size`, so that calls with other sizes seldom recompile.
    """
    rows = min(conditions, max(batch_size - 2, 0) // n + 2)  # a batch may start within the samples of a condition
    return _next_power_of_two(rows), min(batch_size, _next_power_of_two(conditions * n))


def _next_power_of_two(minimum: int) -> int:
    return 1 << (minimum - 1).bit_length()


# ---------------------------------------------------------------------------------------------------------------------
# Sliding windows


class Window(NamedTuple):
    """A window in a large image, with the size of the model's grid.

    Attributes:
      top, left: corner of the window in codes.
      prefix: number of known codes in complete rows at the start of the window.
      known: mask of known codes after the prefix.
    """

    top: int
    left: int
    prefix: int
    known: Bool[np.ndarray, "l"]


def iterate_windows(
    size: tuple[int, int], window: tuple[int, int], stride: int, known: Bool[np.ndarray, "H W"]
) -> Iterator[Window]:
    """Yields sliding windows over an image of `size` codes, in reading order.

    Codes of earlier windows are known, so each code is conditioned on the preceding codes within its window (arXiv
    2012.09841, section 3.3 and figure 3).

    Args:
      window: height and width of windows in codes.
      stride: stride of windows in codes.
      known: mask of fixed codes.
    """
    known = known.copy()
    height, width = window
    for top in _offsets(size[0], height, stride):
        for left in _offsets(size[1], width, stride):
            inside = known[top : top + height, left : left + width]
            rows = int(np.argmin(inside.all(axis=1))) if not inside.all() else height
            prefix = rows * width  # complete rows, to compile for few shapes
            yield Window(top, left, prefix, inside.reshape(-1)[prefix:].copy())
            inside[:] = True


def _offsets(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]
