"""Contrastive losses over the global batch: softmax (CLIP) and sigmoid (SigLIP).

Under `jit` with a batch sharded over devices, the compiler gathers the embeddings and each device computes its rows of
the logits. `clip_jax.ring_loss` computes the same losses without storing the logits. Logits and losses are float32.

`group` holds one integer per pair: image i and text j are a positive pair if `group[i] == group[j]`. `arange(n)` gives
the standard loss, in which each image has one positive text.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nn_jax.attention import platform

Metrics = dict[str, Float[Array, ""]]


def group_captions(ids: Int[Array, "n length"]) -> Int[Array, "n"]:
    """Assigns a group index to each row of token ids. Equal rows have the same index."""
    # Sorting by all columns compiles slowly. Sorting by two hashes also makes equal rows adjacent; adjacent rows are then
    # compared in full.
    factors = np.random.default_rng(0).integers(1, 2**32, (2, ids.shape[1]), np.uint64).astype(np.uint32) | 1
    hashes = jnp.sum(ids.astype(jnp.uint32)[None] * factors[:, None], axis=2, dtype=jnp.uint32)
    order = jnp.lexsort(hashes)
    sorted_ids = ids[order]
    is_new = jnp.any(sorted_ids[1:] != sorted_ids[:-1], axis=1)
    group = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(is_new, dtype=jnp.int32)])
    return jnp.zeros_like(group).at[order].set(group)


def softmax_loss(
    images: Float[Array, "n dim"], texts: Float[Array, "n dim"], scale: Float[Array, ""], group: Int[Array, "n"]
) -> tuple[Float[Array, ""], Metrics]:
    """Computes the symmetric cross-entropy over images and texts (arXiv 2103.00020, figure 3).

    The target of a row is uniform over its group. Returns the loss and the retrieval accuracies in both directions.
    """
    logits = scale * compute_cosines(images, texts)  # (N, N)
    positive = group[:, None] == group[None, :]
    target = positive.astype(jnp.float32)
    text_log_likelihood = jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1) / jnp.sum(target, axis=1)
    image_log_likelihood = jnp.sum(target * jax.nn.log_softmax(logits, axis=0), axis=0) / jnp.sum(target, axis=0)
    return -0.5 * (jnp.mean(text_log_likelihood) + jnp.mean(image_log_likelihood)), _compute_accuracy(logits, positive)


def sigmoid_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    group: Int[Array, "n"],
) -> tuple[Float[Array, ""], Metrics]:
    """Computes the binary cross-entropy of all pairs (arXiv 2303.15343, algorithm 1).

    The loss is the sum over pairs divided by n. Returns the loss and the retrieval accuracies, as `softmax_loss`.
    """
    logits = scale * compute_cosines(images, texts) + bias
    positive = group[:, None] == group[None, :]
    sign = jnp.where(positive, 1.0, -1.0)
    return -jnp.sum(jax.nn.log_sigmoid(sign * logits)) / images.shape[0], _compute_accuracy(logits, positive)


def negatives_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    negatives: Float[Array, "n dim"],
    scale: Float[Array, ""],
    has_negative: Bool[Array, "n"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the cross-entropy of choosing an image's caption rather than a false one (hard negatives, arXiv 2210.01936).

    There a false caption joins the softmax over all captions of the batch; here it is told from the true one alone, so that
    nothing is exchanged between devices, and the loss is the same with softmax and sigmoid.

    Args:
      negatives: embedding of a false caption of each image.
      has_negative: False for pairs that are left out.

    Returns the mean loss and accuracy; 0 and 0 without any pair.
    """
    margin = scale * jnp.sum(images.astype(jnp.float32) * (texts - negatives).astype(jnp.float32), axis=1)
    count = jnp.maximum(jnp.sum(has_negative), 1)
    accuracy = jnp.sum(has_negative & (margin > 0)) / count
    return jnp.sum(jnp.where(has_negative, jax.nn.softplus(-margin), 0.0)) / count, accuracy


def _softmax_loss_without_bias(images, texts, scale, bias, group):
    return softmax_loss(images, texts, scale, group)


# Name -> `(images, texts, scale, bias, group) -> (loss, metrics)`. With the softmax loss, the bias is 0.
LOSSES: dict[str, Callable] = {"softmax": _softmax_loss_without_bias, "sigmoid": sigmoid_loss}


def compute_cosines(images, texts):
    """Computes the inner products of all pairs of rows: float32 [n, m]."""
    return multiply(images.astype(jnp.float32), texts.astype(jnp.float32).T)


def multiply(a, b):
    """Multiplies float32 matrices with errors of at most 2^-16 of a product of two numbers.

    The logit scale magnifies rounding errors. TPUs and NVIDIA GPUs sum three products of rounded numbers on their matrix
    units; in full precision, TPUs need six, and GPUs do not use them.
    """
    is_gpu = platform() in ("gpu", "cuda")
    precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if is_gpu else jax.lax.Precision.HIGH
    return jnp.matmul(a, b, precision=precision)


def _compute_accuracy(logits, positive) -> Metrics:
    rows = jnp.arange(logits.shape[0])
    return {
        "accuracy/image_to_text": jnp.mean(positive[rows, jnp.argmax(logits, axis=1)].astype(jnp.float32)),
        "accuracy/text_to_image": jnp.mean(positive[jnp.argmax(logits, axis=0), rows].astype(jnp.float32)),
    }
