"""Negative log-likelihoods of sequences, and the entropy of code counts."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nn_jax.code_transformer import CodeTransformer

NATS_PER_BIT = float(np.log(2))


def cross_entropy(logits: Float[Array, "... k"], labels: Int[Array, "..."]) -> Float[Array, "..."]:
    """Computes the negative log-likelihoods of labels.

    Optax gathers the logits of the labels: a gather over a vocabulary that is sharded by tensor parallelism, for which XLA's
    partitioner aborts the process where a mesh axis is manual (`train_jax.sharding.map_over_data`).
    """
    is_label = labels[..., None] == jnp.expand_dims(jnp.arange(logits.shape[-1]), tuple(range(labels.ndim)))
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(is_label, logits, 0), axis=-1)


def negative_log_likelihoods(module: CodeTransformer, logits, tokens, codes):
    """Computes negative log-likelihoods in nats of condition tokens [B, C - 1] and of codes [B, L].

    The first condition token is not predicted. Without predicted conditions the first result is None.
    """
    condition_logits, code_logits = logits
    code_nats = cross_entropy(code_logits, codes.reshape(len(codes), -1) + module.code_offset)
    return None if condition_logits is None else cross_entropy(condition_logits, tokens[:, 1:]), code_nats


def entropy_bits(counts: np.ndarray) -> float:
    """Computes the entropy of code counts in bits, the optimal loss of a unigram model."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))
