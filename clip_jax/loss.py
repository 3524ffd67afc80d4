"""Contrastive losses over the global batch: softmax (CLIP) and sigmoid (SigLIP), written as if one device held it all.

Under `jit` with a batch split over devices, the compiler gathers the embeddings and each device makes its rows of the
logits; `clip_jax.ring_loss` computes the same without ever holding them. Logits and losses are float32.

Which text is true of which image is said by groups: whole numbers, one a pair; image i and text j belong together where
`group[i] == group[j]`. `arange(n)` is the textbook, in which a pair is alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Metrics = dict[str, Float[Array, ""]]


def same_caption(ids: Int[Array, "n length"]) -> Int[Array, "n"]:
    """The same group for equal rows of ids."""
    # Sorting whole rows would compile a comparison of every column: rows are sorted by two hashes of them, which brings
    # equal ones together, and neighbours are compared in full.
    factors = np.random.default_rng(0).integers(1, 2**32, (2, ids.shape[1]), np.uint64).astype(np.uint32) | 1
    hashes = jnp.sum(ids.astype(jnp.uint32)[None] * factors[:, None], axis=2, dtype=jnp.uint32)
    order = jnp.lexsort(hashes)
    ordered = ids[order]
    new = jnp.any(ordered[1:] != ordered[:-1], axis=1)
    number = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new, dtype=jnp.int32)])
    return jnp.zeros_like(number).at[order].set(number)


def softmax_loss(
    images: Float[Array, "n dim"], texts: Float[Array, "n dim"], scale: Float[Array, ""], group: Int[Array, "n"]
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of the cross-entropies from images to texts and from texts to images (arXiv 2103.00020, figure 3).

    A row's target is spread evenly over its group. Returns the loss, and how often the likeliest partner is of the group.
    """
    logits = scale * cosines(images, texts)  # (N, N)
    positive = group[:, None] == group[None, :]
    target = positive.astype(jnp.float32)
    to_text = jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1) / jnp.sum(target, axis=1)
    to_image = jnp.sum(target * jax.nn.log_softmax(logits, axis=0), axis=0) / jnp.sum(target, axis=0)
    return -0.5 * (jnp.mean(to_text) + jnp.mean(to_image)), _accuracy(logits, positive)


def sigmoid_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    group: Int[Array, "n"],
) -> tuple[Float[Array, ""], Metrics]:
    """Every pair a yes-or-no question (arXiv 2303.15343, algorithm 1): summed over pairs, divided by n."""
    logits = scale * cosines(images, texts) + bias
    positive = group[:, None] == group[None, :]
    sign = jnp.where(positive, 1.0, -1.0)
    return -jnp.sum(jax.nn.log_sigmoid(sign * logits)) / images.shape[0], _accuracy(logits, positive)


def _softmax_loss_without_bias(images, texts, scale, bias, group):
    return softmax_loss(images, texts, scale, group)


# Name -> `(images, texts, scale, bias, group) -> (loss, metrics)`. The bias is 0 in a model of the softmax loss.
LOSSES: dict[str, Callable] = {"softmax": _softmax_loss_without_bias, "sigmoid": sigmoid_loss}


def cosines(images, texts):
    """float32 [n, m]. The scale of up to 100 magnifies rounding: no shortened products, also where they are the default."""
    return jnp.matmul(images.astype(jnp.float32), texts.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)


def _accuracy(logits, positive) -> Metrics:
    rows = jnp.arange(logits.shape[0])
    return {
        "accuracy/image_to_text": jnp.mean(positive[rows, jnp.argmax(logits, axis=1)].astype(jnp.float32)),
        "accuracy/text_to_image": jnp.mean(positive[jnp.argmax(logits, axis=0), rows].astype(jnp.float32)),
    }
