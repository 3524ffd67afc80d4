"""Negative log-likelihoods of sequences, and the entropy of code counts."""

import numpy as np
import optax

from nn_jax.code_transformer import CodeTransformer

NATS_PER_BIT = float(np.log(2))


def negative_log_likelihoods(module: CodeTransformer, logits, tokens, codes):
    """Computes negative log-likelihoods in nats of condition tokens [B, C - 1] and of codes [B, L].

    The first condition token is not predicted. Without predicted conditions the first result is None.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    condition_logits, code_logits = logits
    code_nats = cross_entropy(code_logits, codes.reshape(len(codes), -1) + module.code_offset)
    return None if condition_logits is None else cross_entropy(condition_logits, tokens[:, 1:]), code_nats


def entropy_bits(counts: np.ndarray) -> float:
    """Computes the entropy of code counts in bits, the optimal loss of a unigram model."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))
