"""Sampling of codes: one prefill per condition, shared by all samples of the condition, then compiled scans.

    prefilled = prefill(params, condition, known)       logits of the next code and KV caches, one row per condition
    prefixes, (logits, caches) = assign(prefilled, rows, groups, unconditional)  one row per sample, or two with guidance
    make_room(caches, length)                           for the codes of the next segment
    codes, log_probs, (logits, caches) = decode_chunk(params, sampling, prefixes, (logits, caches), requests, start, …)

A scan reads the caches as far as they have room. So an image is sampled in `SEGMENTS` scans, each with as much room as its
last code needs: on average 5/8 of the codes are read for each code, and half of them would suffice.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, UInt32

from nn_jax.attention import KVCache
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


SEGMENTS = 4  # more would save little, and each is a program to compile


class Programs(NamedTuple):
    """The functions `prefill`, `assign` and `decode_chunk` of this module's docstring."""

    prefill: Callable
    assign: Callable
    decode_chunk: Callable


def compile_programs(module: CodeTransformer) -> Programs:
    """Jits the functions of `Programs`. Values of `Sampling` are traced, so changing them does not recompile."""
    programs = build_programs(module)
    return Programs(
        jax.jit(programs.prefill),
        jax.jit(programs.assign),
        jax.jit(programs.decode_chunk, static_argnames=("filtered", "guided"), donate_argnums=3),
    )


def build_programs(module: CodeTransformer) -> Programs:
    """Builds the functions of `Programs` without jit."""

    def prefill(params, condition: jax.Array, known: Int[Array, "p k"]):
        unrolled, params = unroll_for_decoding(module, params)
        return unrolled.apply({"params": params}, condition, known, method="prefill")

    def assign(prefilled: Any, rows: Int[Array, "b"], groups: Int[Array, "g"], unconditional: Any):
        """Assigns the rows of `prefilled` to samples: `rows` has that of each sample, `groups` that of each b / g samples.

        `unconditional` is another such pair `(rows, groups)` for the second row of each sample, with guidance, or None.
        """
        logits, caches = prefilled
        pairs = [(rows, groups)] + ([] if unconditional is None else [unconditional])

        def take(x, index):
            return _shard(jnp.take(x, index, axis=0))

        prefixes = tuple(
            tuple(jax.tree.map(functools.partial(take, index=groups), cache) for _, groups in pairs) for cache in caches
        )
        logits = take(logits, jnp.stack([rows for rows, _ in pairs], axis=1).reshape(-1))
        return prefixes, (logits, list(module.bind({}).empty_caches(len(logits))))

    def decode_chunk(
        params, sampling: Sampling, prefixes: Any, carry: Any, requests: Requests, start, filtered: bool, guided: bool
    ):
        """Samples the codes of `requests` from index `start`; returns codes, log-probabilities and the carry."""
        unrolled, params = unroll_for_decoding(module, params)
        keys = jax.vmap(lambda s: functools.reduce(jax.random.fold_in, s[1:], jax.random.key(s[0])))(requests.seeds)

        def decode_step(codes, index, caches):
            logits, caches = unrolled.apply({"params": params}, codes, index, prefixes, tuple(caches), method="decode_step")
            return logits, list(caches)

        return decode(
            decode_step,
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

    return Programs(prefill, assign, decode_chunk)


def make_room(caches: list[KVCache], length: int) -> None:
    """Makes room for `length` codes in the caches of all blocks, in place.

    Only one cache at a time needs memory twice, if the list holds the only references.
    """
    for index in range(len(caches)):
        if caches[index].length < length:
            caches[index] = _grow(caches[index], length)


@functools.partial(jax.jit, static_argnums=1)
def _grow(cache: KVCache, length: int) -> KVCache:
    return jax.tree.map(_shard, cache.grow(length))


def _shard(x: jax.Array) -> jax.Array:
    """Shards rows over the devices."""
    return jax.lax.with_sharding_constraint(x, P("batch"))


def segment_end(stop: int, length: int) -> int:
    """Returns the end of the segment that holds the codes before `stop`, of `length` codes in `SEGMENTS` segments."""
    size = -(-length // SEGMENTS)
    return min(-(-stop // size) * size, length)


def segments(length: int) -> list[tuple[int, int]]:
    """Returns the first code and the end of each segment of `length` codes."""
    ends = sorted({segment_end(stop, length) for stop in range(1, length + 1)})
    return list(zip([0, *ends], ends, strict=False))


def group_size(conditions: int, n: int, batch_size: int, rows: int) -> int:
    """Returns the number of consecutive samples of a batch that have the same condition, in all batches.

    It is a power of two, unless there is only one condition, so that other numbers of samples seldom recompile.

    Args:
      rows: padded number of samples of a batch on one device.
    """
    if conditions == 1:
        return rows
    divisor = math.gcd(n, batch_size, rows)
    return divisor & -divisor


def first_samples(conditions: Sequence[Any], n: int) -> Int[np.ndarray, "p"]:
    """Returns the index of the first of `n` samples of each condition. Repeated conditions continue the sample indices."""
    counts = collections.Counter()
    first = np.empty(len(conditions), np.int64)
    for i, value in enumerate(conditions):
        key = (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        first[i] = counts[key]
        counts[key] += n
    return first


def make_seeds(
    condition: Condition,
    conditions: Sequence[Any],
    first: Int[np.ndarray, "p"],
    n: int,
    seed: int | Sequence[int] | np.ndarray,
) -> UInt32[np.ndarray, "p n 3"]:
    """Returns `Requests.seeds` of `n` samples per condition, of which `first` are the first; one seed, or one for each."""
    rows = np.empty((len(conditions), n, 3), np.uint32)
    rows[..., 0] = np.reshape(seed, (-1, 1))
    rows[..., 1] = np.array([condition.seed(value) for value in conditions], np.uint32)[:, None]
    rows[..., 2] = first[:, None] + np.arange(n)
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
