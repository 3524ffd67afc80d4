"""Drawing a sequence of codes from a model that gives logits for the next one: one compiled scan.

    codes, log_probs = decode(step, logits, cache, keys, sampling, ...)

It knows no model: `step(codes, index, cache) -> (logits, cache)` is one, fed with code number `index`.
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
    """How a code is drawn from its logits; numbers that may change without compiling anew.

    Attributes:
      temperature: divides the logits; 0 takes the most likely code.
      top_k: only so many of the most likely codes; 0: all. Not above `most` of `draw`.
      top_p: only the most likely codes that together reach this probability, after temperature and top_k (nucleus
        sampling, arXiv 1904.09751); 1: all.
      guidance: how far from the unconditional logits to the conditional ones (classifier-free, arXiv 2207.12598, for
        logits): 1 is the conditional model, more goes beyond it.
    """

    temperature: ArrayLike = 1.0
    top_k: ArrayLike = 0
    top_p: ArrayLike = 1.0
    guidance: ArrayLike = 1.0


def draw(key: jax.Array, logits: Float[Array, "v"], sampling: Sampling, most: int) -> Int32[Array, ""]:
    """One code from its logits.

    Args:
      most: 0: neither top_k nor top_p is looked at; else how many of the most likely codes can be drawn at all (the size of
        the vocabulary where top_p alone shall limit them). Ties at the border go to the lower codes.

    The noise of a code depends on the key alone: filters that let everything through change nothing.
    """
    logits = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape)
    # argmax(logits / t + noise), in a form that has a meaning at t = 0.
    if not most:
        return jnp.argmax(logits + sampling.temperature * noise).astype(jnp.int32)
    values, codes = jax.lax.top_k(logits, most)
    rank = jnp.arange(most)
    allowed = (rank < sampling.top_k) | (jnp.asarray(sampling.top_k) == 0)
    scaled = jnp.where(allowed, values / jnp.maximum(sampling.temperature, 1e-6), -jnp.inf)
    p = jax.nn.softmax(scaled)
    # A code stays as long as the more likely ones do not reach top_p without it; the first always stays.
    allowed &= (jnp.cumsum(p) - p < sampling.top_p) | (rank == 0)
    return codes[jnp.argmax(jnp.where(allowed, values + sampling.temperature * noise[codes], -jnp.inf))].astype(
        jnp.int32
    )


def decode(
    step: Callable[[Int[Array, "rows"], jax.Array, Any], tuple[Float[Array, "rows v"], Any]],
    logits: Float[Array, "rows v"],
    cache: Any,
    keys: jax.Array,
    sampling: Sampling,
    *,
    places: Int[ArrayLike, "length"],
    most: int = 0,
    guided: bool = False,
    kept: Int[Array, "b length"] | None = None,
    keep: Bool[Array, "b length"] | None = None,
    first: ArrayLike = 0,
) -> tuple[Int32[Array, "b length"], Float32[Array, "b length"], tuple[jax.Array, Any]]:
    """Codes one after another, each drawn from logits that know those before it.

    Args:
      step: the model: code number `index` of each row -> logits of the next one, and the cache with this one in it.
      logits: of the first code.
      keys: one a sequence [b]. The draw at a place depends on the sequence's key and `places`, so a sequence is the same
        whatever the batch it is drawn in.
      places: numbers that tell the draws apart; where a sequence is a whole image, the codes' numbers.
      most: see `draw`.
      guided: whether rows come in pairs, `rows = 2 b`: the condition's, and the one's without it. Both are fed the code that
        is drawn.
      kept, keep: codes that are given, where `keep` is true; they are not drawn.
      first: index of the first code.

    Returns `(codes, log_probs, (logits, cache))`; `log_probs` are the model's own (of the condition, at temperature 1, no
    filter), in nats; the last pair goes on where this call ended.
    """
    batch = len(keys)
    length = len(places)
    if keep is None:
        kept, keep = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length), bool)

    def body(carry, inputs):
        logits, cache = carry
        index, place, given, is_given = inputs
        rows = logits.astype(jnp.float32)
        conditional = guided_logits = rows
        if guided:
            pairs = rows.reshape(batch, 2, -1)
            conditional = pairs[:, 0]
            guided_logits = pairs[:, 1] + sampling.guidance * (conditional - pairs[:, 1])
        fresh = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)
        codes = jax.vmap(draw, in_axes=(0, 0, None, None))(fresh, guided_logits, sampling, most)
        codes = jnp.where(is_given, given, codes).astype(jnp.int32)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(conditional), codes[:, None], axis=1)[:, 0]
        logits, cache = step(jnp.repeat(codes, 2) if guided else codes, index, cache)
        return (logits, cache), (codes, log_probs)

    inputs = (first + jnp.arange(length), jnp.asarray(places), kept.T, keep.T)
    carry, (codes, log_probs) = jax.lax.scan(body, (logits, cache), inputs)
    return codes.T, log_probs.T, carry
