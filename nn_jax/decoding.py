"""Autoregressive sampling of codes from any model with a KV cache, as one compiled scan.

    codes, log_probs, carry = decode(decode_step, logits, cache, keys, sampling, ...)

The model is a function `decode_step(codes, index, cache) -> (logits, cache)`: it maps the codes at position `index` to the
logits of the next codes.
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
    """Sampling options. Values are traced and can change without recompilation.

    Attributes:
      temperature: divisor of the logits; 0: greedy decoding.
      top_k: number of most likely codes to sample from; 0: all.
      top_p: probability of nucleus sampling (arXiv 1904.09751), applied after temperature and top_k; 1: all codes.
      guidance: scale of classifier-free guidance (arXiv 2207.12598) of the logits; 1: the conditional model.
    """

    temperature: ArrayLike = 1.0
    top_k: ArrayLike = 0
    top_p: ArrayLike = 1.0
    guidance: ArrayLike = 1.0


def has_filters(top_k: int, top_p: float | int) -> bool:
    """Returns whether `top_k` or `top_p` can exclude a code, for which `sample_code` needs another program."""
    return bool(top_k) or top_p < 1


def sample_code(key: jax.Array, logits: Float[Array, "v"], sampling: Sampling, filtered: bool) -> Int32[Array, ""]:
    """Samples a code from its logits by the Gumbel-max trick: argmax(logits / temperature + noise).

    Args:
      filtered: whether top_k and top_p are applied.

    The noise of a code depends only on the key, so filters that exclude no code do not change the result.
    """
    logits = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape)
    # argmax(logits / t + noise), in a form that is defined at t = 0.
    scores = logits + sampling.temperature * noise
    if filtered:
        scores = jnp.where(allowed_codes(logits, sampling), scores, -jnp.inf)
    return jnp.argmax(scores).astype(jnp.int32)


def allowed_codes(logits: Float[Array, "v"], sampling: Sampling) -> Bool[Array, "v"]:
    """Returns the mask of the codes that top_k and then top_p allow. Ties are broken in favour of smaller codes.

    A code is allowed by top_k if fewer than top_k codes are more likely, and by top_p if the more likely codes have a total
    probability below top_p; the most likely code is always allowed.
    """
    ranks = jnp.arange(len(logits))
    descending = -jnp.sort(-logits)
    is_top = (ranks < sampling.top_k) | (jnp.asarray(sampling.top_k) == 0)
    p = jax.nn.softmax(jnp.where(is_top, descending / jnp.maximum(sampling.temperature, 1e-6), -jnp.inf))
    before = jnp.cumsum(p) - p
    # A sum of all probabilities may be rounded to less than 1.
    count = jnp.maximum(1, jnp.sum(is_top & ((before < sampling.top_p) | (jnp.asarray(sampling.top_p) >= 1))))
    # All codes above the last one that is allowed, and the first of those that equal it: only values are sorted.
    last = descending[count - 1]
    is_above, is_last = logits > last, logits == last
    return is_above | (is_last & (jnp.cumsum(is_last) <= count - jnp.sum(is_above)))


def decode(
    decode_step: Callable[[Int[Array, "rows"], jax.Array, Any], tuple[Float[Array, "rows v"], Any]],
    logits: Float[Array, "rows v"],
    cache: Any,
    keys: jax.Array,
    sampling: Sampling,
    *,
    positions: Int[ArrayLike, "length"],
    filtered: bool = False,
    guided: bool = False,
    known_codes: Int[Array, "b length"] | None = None,
    known_mask: Bool[Array, "b length"] | None = None,
    start: ArrayLike = 0,
) -> tuple[Int32[Array, "b length"], Float32[Array, "b length"], tuple[jax.Array, Any]]:
    """Samples `length` codes autoregressively. Returns `(codes, log_probs, (logits, cache))`.

    Args:
      decode_step: function `(codes, index, cache)` -> logits of the next codes, and the updated cache.
      logits: logits of the first codes.
      cache: cache before the first codes.
      keys: one random key per sequence [b]. The noise of a code depends only on the key of its sequence and its position,
        so a sequence does not depend on the other sequences of the batch.
      positions: positions of the codes, which select their noise; for images, the indices of the codes.
      filtered: whether `sampling.top_k` and `top_p` are applied.
      guided: whether rows are pairs of a conditional and an unconditional sequence, `rows = 2 b`. Both rows of a pair get
        the same sampled code.
      known_codes: codes to use instead of sampling where `known_mask` is True.
      known_mask: mask of the known codes.
      start: index of the first code.

    `log_probs` are those of the conditional model at temperature 1 without filters, in nats. `(logits, cache)` continue the
    sequences in another call.
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
        codes = jax.vmap(sample_code, in_axes=(0, 0, None, None))(code_keys, guided_logits, sampling, filtered)
        codes = jnp.where(is_known, known, codes).astype(jnp.int32)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(conditional), codes[:, None], axis=1)[:, 0]
        logits, cache = decode_step(jnp.repeat(codes, 2) if guided else codes, index, cache)
        return (logits, cache), (codes, log_probs)

    inputs = (start + jnp.arange(length), jnp.asarray(positions), known_codes.T, known_mask.T)
    carry, (codes, log_probs) = jax.lax.scan(body, (logits, cache), inputs)
    return codes.T, log_probs.T, carry
