"""From prompts to codes: a prompt is read once, whatever the number of its pictures; the rest is one compiled scan.

prefilled = programs.prefill(params, text)            logits of the first code and a cache, a row a prompt
carry = programs.expand(prefilled, prompts, guided)   a row a picture, or two where it is guided
codes, log_probs, carry = programs.advance(params, sampling, carry, rows, first, length, most, guided)
"""

import collections
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, UInt32

from dalle_jax.model import Dalle, for_sampling
from nn_jax.decode import Sampling, decode


class Rows(NamedTuple):
    """What is asked for, a picture a row.

    Attributes:
      seeds: (seed, hash of the prompt, number of the sample): a picture depends on them alone, whatever is drawn beside it.
      kept: codes, given where `keep` is true.
    """

    seeds: UInt32[Array, "b 3"]
    kept: Int[Array, "b l"]
    keep: Bool[Array, "b l"]


class Programs(NamedTuple):
    prefill: Callable
    expand: Callable
    advance: Callable


def compile_programs(module: Dalle) -> Programs:
    """The three programs above, compiled for each shape once; the numbers of `Sampling` may change."""
    plain = functions(module)
    return Programs(
        jax.jit(plain.prefill),
        jax.jit(plain.expand, static_argnames="guided"),
        jax.jit(plain.advance, static_argnames=("length", "most", "guided"), donate_argnums=2),
    )


def functions(module: Dalle) -> Programs:
    """The three programs above as pure functions."""

    def prefill(params, text: Int[Array, "p n"]):
        plain, params = for_sampling(module, params)
        return plain.apply({"params": params}, text, method="begin")

    def expand(prefilled: Any, prompts: Int[Array, "b"], guided: bool):
        """Rows of `prefilled` for pictures; for a guided one a second row, without the prompt: the last of `prefilled`."""
        if guided:
            nothing = jnp.full_like(prompts, len(prefilled[0]) - 1)
            prompts = jnp.stack([prompts, nothing], axis=1).reshape(-1)
        rows = jax.tree.map(lambda x: jnp.take(x, prompts, axis=0), prefilled)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P("batch")), rows)

    def advance(params, sampling: Sampling, carry: Any, rows: Rows, first, length: int, most: int, guided: bool):
        """Codes `first` to `first + length`, of which `rows.kept` and `rows.keep` are."""
        plain, params = for_sampling(module, params)
        keys = jax.vmap(lambda s: functools.reduce(jax.random.fold_in, s[1:], jax.random.key(s[0])))(rows.seeds)
        return decode(
            lambda codes, index, cache: plain.apply({"params": params}, codes, index, cache, method="step"),
            *carry,
            keys,
            sampling,
            places=first + jnp.arange(length),
            most=most,
            guided=guided,
            kept=rows.kept,
            keep=rows.keep,
            first=first,
        )

    return Programs(prefill, expand, advance)


def seeds(prompts: Sequence[str], n: int, seed: int) -> UInt32[np.ndarray, "p n 3"]:
    """`Rows.seeds` of `n` pictures of each prompt; a prompt that occurs again goes on counting its samples."""
    drawn = collections.Counter()
    found = np.empty((len(prompts), n, 3), np.uint32)
    found[..., 0] = seed
    for place, prompt in enumerate(prompts):
        found[place, :, 1] = zlib.crc32(prompt.encode())
        found[place, :, 2] = np.arange(drawn[prompt], drawn[prompt] + n)
        drawn[prompt] += n
    return found


def padded_sizes(prompts: int, n: int, batch_size: int) -> tuple[int, int]:
    """Rows of texts and of pictures that hold any `batch_size` pictures in a row, of `n` of each prompt.

    Both are powers of two, or `batch_size` itself, so that calls of other sizes seldom need other programs.
    """
    touched = min(prompts, max(batch_size - 2, 0) // n + 2)  # by pictures that begin in the middle of a prompt's
    return _power_of_two(touched), min(batch_size, _power_of_two(prompts * n))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
