"""Autoregressive sampling of codes from any model with a KV cache: one compiled scan.

    codes, log_probs, carry = decode(decode_step, logits, cache, keys, sampling, ...)

It knows no model: `decode_step(codes, index, cache) -> (logits, cache)` is one, whose input are the codes at `index`.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32


@flax.struct.dataclass
class Sampling:
    """Options of sampling a code from its logits; traced values, which can change without recompilation.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: only so many of the most likely codes; 0: all. At most the `max_candidates` of `sample_code`.
      top_p: nucleus sampling (arXiv 1904.09751): only the most likely codes that together reach this probability, after
        temperature and top_k; 1: all.
      guidance: scale of classifier-free guidance (arXiv 2207.12598), applied to logits: 1 is the conditional model.
    """

    temperature: ArrayLike = 1.0
    top_k: ArrayLike = 0
    top_p: ArrayLike = 1.0
    guidance: ArrayLike = 1.0


def max_candidates(vocabulary_size: int, top_k: int, top_p: float | int) -> int:
    """Number of most likely codes that a program must sort for these filters; 0: none.

    A power of two, so that another top_k seldom needs another program.
    """
    if top_k:
        return min(vocabulary_size, 1 << (top_k - 1).bit_length())
    return vocabulary_size if top_p < 1 else 0


def sample_code(
    key: jax.Array, logits: Float[Array, "v"], sampling: Sampling, max_candidates: int
) -> Int32[Array, ""]:
    """Samples a code from its logits by the Gumbel-max trick: argmax(logits / temperature + noise).

    Args:
      max_candidates: 0: neither top_k nor top_p is applied; else how many of the most likely codes can be sampled at all
        (the size of the vocabulary where top_p alone shall limit them). Ties at the border go to the lower codes.

    The noise of a code depends on the key alone: filters that let everything through change nothing.
    """
    logits = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape)
    # argmax(logits / t + noise), in a form that is defined at t = 0.
    if not max_candidates:
        return jnp.argmax(logits + sampling.temperature * noise).astype(jnp.int32)
    values, codes = jax.lax.top_k(logits, max_candidates)
    rank = jnp.arange(max_candidates)
    allowed = (rank < sampling.top_k) | (jnp.asarray(sampling.top_k) == 0)
    scaled = jnp.where(allowed, values / jnp.maximum(sampling.temperature, 1e-6), -jnp.inf)
    p = jax.nn.softmax(scaled)
    # A code stays as long as the more likely ones do not reach top_p without it; the first always stays.
    allowed &= (jnp.cumsum(p) - p < sampling.top_p) | (rank == 0)
    best = jnp.argmax(jnp.where(allowed, values + sampling.temperature * noise[codes], -jnp.inf))
    return codes[best].astype(jnp.int32)


def decode(
    decode_step: Callable[[Int[Array, "rows"], jax.Array, Any], tuple[Float[Array, "rows v"], Any]],
    logits: Float[Array, "rows v"],
    cache: Any,
    keys: jax.Array,
    sampling: Sampling,
    *,
    positions: Int[ArrayLike, "length"],
    max_candidates: int = 0,
    guided: bool = False,
    known_codes: Int[Array, "b length"] | None = None,
    known_mask: Bool[Array, "b length"] | None = None,
    start: ArrayLike = 0,
) -> tuple[Int32[Array, "b length"], Float32[Array, "b length"], tuple[jax.Array, Any]]:
    """Samples `length` codes one after another, each given those before it.

    Args:
      decode_step: the model: the code at `index` of each row -> logits of the next one, and the cache with this one in it.
      logits: of the first code.
      keys: one a sequence [b]. The noise of a code depends on the sequence's key and `positions`, so a sequence is the same
        whatever the batch it is sampled in.
      positions: of the codes, by which their noise differs; where a sequence is an image, the codes' indices.
      max_candidates: see `sample_code`.
      guided: whether rows come in pairs, `rows = 2 b`: conditional and unconditional. Both are fed the code that is sampled.
      known_codes, known_mask: codes that are given where the mask is true; they are not sampled.
      start: index of the first code.

    Returns `(codes, log_probs, (logits, cache))`; `log_probs` are the model's own (of the condition, at temperature 1,
    without filters), in nats; the last pair continues where this call ended.
    """
    batch = len(keys)
    length = len(positions)
    if known_mask is None:
        known_codes, known_mask = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length), bool)

    def body(carry, inputs):
        logits, cache = carry
        index, position, known, is_known = inputs
        conditional = guided_logits = logits.astype(jnp.float32)
        if guided:
            pairs = conditional.reshape(batch, 2, -1)
            conditional, unconditional = pairs[:, 0], pairs[:, 1]
            guided_logits = unconditional + sampling.guidance * (conditional - unconditional)
        code_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)
        codes = jax.vmap(sample_code, in_axes=(0, 0, None, None))(code_keys, guided_logits, sampling, max_candidates)
        codes = jnp.where(is_known, known, codes).astype(jnp.int32)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(conditional), codes[:, None], axis=1)[:, 0]
        logits, cache = decode_step(jnp.repeat(codes, 2) if guided else codes, index, cache)
        return (logits, cache), (codes, log_probs)

    inputs = (start + jnp.arange(length), jnp.asarray(positions), known_codes.T, known_mask.T)
    carry, (codes, log_probs) = jax.lax.scan(body, (logits, cache), inputs)
    return codes.T, log_probs.T, carry
