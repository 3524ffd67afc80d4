"""From conditions to codes: a condition is read once, whatever the number of its samples; the rest is one compiled scan.

    prefilled = prefill(params, condition, known)               logits of the next code and KV caches, a row a condition
    carry = replicate(prefilled, rows, unconditional_rows)      a row a sample, or two where it is guided
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

from nn_jax.code_transformer import CodeTransformer, for_decoding
from nn_jax.decoding import Sampling, decode
from vqgan_jax.stage2.condition import Condition


class Requests(NamedTuple):
    """What to sample, a sample a row.

    Attributes:
      seeds: (seed, hash of the condition, number of the sample): a sample depends on them alone, whatever is beside it.
      positions: by which the noise of codes differs; see `nn_jax.decoding.decode`.
      known_codes, known_mask: codes that are given where the mask is true.
    """

    seeds: UInt32[Array, "b 3"]
    positions: Int[Array, "l"]
    known_codes: Int[Array, "b l"]
    known_mask: Bool[Array, "b l"]


class Programs(NamedTuple):
    prefill: Callable
    replicate: Callable
    decode_chunk: Callable


def compile_programs(module: CodeTransformer) -> Programs:
    """The three programs above, compiled for each shape once; the numbers of `Sampling` may change."""
    programs = pure_programs(module)
    return Programs(
        jax.jit(programs.prefill),
        jax.jit(programs.replicate),
        jax.jit(programs.decode_chunk, static_argnames=("max_candidates", "guided"), donate_argnums=2),
    )


def pure_programs(module: CodeTransformer) -> Programs:
    """The three programs above as pure functions."""

    def prefill(params, condition: Int[Array, "p c"], known: Int[Array, "p k"]):
        unrolled, params = for_decoding(module, params)
        return unrolled.apply({"params": params}, condition, known, method="prefill")

    def replicate(prefilled: Any, rows: Int[Array, "b"], unconditional_rows: Int[Array, "b"] | None):
        """For each sample its condition's row of `prefilled`, and behind it, where it is guided, an unconditional one."""
        if unconditional_rows is not None:
            rows = jnp.stack([rows, unconditional_rows], axis=1).reshape(-1)
        carry = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), prefilled)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P("batch")), carry)

    def decode_chunk(params, sampling: Sampling, carry: Any, requests: Requests, start, max_candidates: int, guided: bool):
        """The codes of `requests`, the first of which is code number `start`, their log-probabilities, and the carry."""
        unrolled, params = for_decoding(module, params)
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
    """`Requests.seeds` of `n` samples of each condition; one that occurs again goes on counting its samples."""
    counts = collections.Counter()
    rows = np.empty((len(conditions), n, 3), np.uint32)
    rows[..., 0] = seed
    for place, value in enumerate(conditions):
        rows[place, :, 1] = condition.seed(value)
        rows[place, :, 2] = np.arange(counts[value], counts[value] + n)
        counts[value] += n
    return rows


def padded_sizes(conditions: int, n: int, batch_size: int) -> tuple[int, int]:
    """Rows of conditions and of samples that hold any `batch_size` samples in a row, of `n` of each condition.

    Both are powers of two, or `batch_size` itself, so that calls of other sizes seldom need other programs.
    """
    touched = min(conditions, max(batch_size - 2, 0) // n + 2)  # a batch may begin in the middle of a condition's samples
    return _next_power_of_two(touched), min(batch_size, _next_power_of_two(conditions * n))


def _next_power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


# ---------------------------------------------------------------------------------------------------------------------
# Sliding windows


class Window(NamedTuple):
    """A part of a large image, as large as the model's grid.

    Attributes:
      top, left: its corner, in codes.
      prefix: how many of its codes, in whole rows from the first on, are known.
      known: which of the others are.
    """

    top: int
    left: int
    prefix: int
    known: Bool[np.ndarray, "l"]


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: int, known: Bool[np.ndarray, "H W"]
) -> Iterator[Window]:
    """Windows over an image of `size` codes, in an order in which each knows what those above and left of it sampled.

    The known part moves with the window, so a code is conditioned on what lies above and left of it, as far as the window
    reaches (arXiv 2012.09841, section 3.3 and figure 3).

    Args:
      stride: codes between two windows.
      known: codes that are given.
    """
    known = known.copy()
    height, width = window
    for top in _offsets(size[0], height, stride):
        for left in _offsets(size[1], width, stride):
            inside = known[top : top + height, left : left + width]
            rows = int(np.argmin(inside.all(axis=1))) if not inside.all() else height
            prefix = rows * width  # whole rows, so that there are few shapes to compile
            yield Window(top, left, prefix, inside.reshape(-1)[prefix:].copy())
            inside[:] = True


def _offsets(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]
