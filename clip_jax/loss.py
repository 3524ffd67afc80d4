"""Contrastive losses over the global batch: softmax (CLIP) and sigmoid (SigLIP), written as if one device held it all.

Under `jit` with a batch split over devices, the compiler gathers the embeddings. Logits and losses are float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def same_caption(ids: Int[Array, "n length"]) -> Bool[Array, "n n"]:
    """True where two rows of ids are equal, the diagonal included."""
    _, group = jnp.unique(ids, axis=0, size=ids.shape[0], return_inverse=True)
    group = group.reshape(-1)
    return group[:, None] == group[None, :]


def softmax_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    positive: Bool[Array, "n n"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean of the cross-entropies from images to texts and from texts to images (arXiv 2103.00020, figure 3).

    `positive[i, j]`: text j is true of image i; a row's target is spread evenly over its positives (one of them: the
    identity matrix, is the paper's loss). Returns the loss, and how often the likeliest partner is a positive one.
    """
    logits = scale * _cosines(images, texts)  # (N, N)
    target = positive.astype(jnp.float32)
    to_text = jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1) / jnp.sum(target, axis=1)
    to_image = jnp.sum(target * jax.nn.log_softmax(logits, axis=0), axis=0) / jnp.sum(target, axis=0)
    return -0.5 * (jnp.mean(to_text) + jnp.mean(to_image)), _accuracy(logits, positive)


def sigmoid_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    positive: Bool[Array, "n n"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Every pair a yes-or-no question (arXiv 2303.15343, algorithm 1): summed over pairs, divided by n."""
    logits = scale * _cosines(images, texts) + bias
    sign = jnp.where(positive, 1.0, -1.0)
    return -jnp.sum(jax.nn.log_sigmoid(sign * logits)) / images.shape[0], _accuracy(logits, positive)


def _cosines(images, texts):
    # The scale of up to 100 magnifies rounding: no shortened products, also where accelerators default to them.
    return jnp.matmul(images.astype(jnp.float32), texts.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)


def _accuracy(logits, positive) -> dict[str, Float[Array, ""]]:
    rows = jnp.arange(logits.shape[0])
    return {
        "accuracy/image_to_text": jnp.mean(positive[rows, jnp.argmax(logits, axis=1)].astype(jnp.float32)),
        "accuracy/text_to_image": jnp.mean(positive[jnp.argmax(logits, axis=0), rows].astype(jnp.float32)),
    }
