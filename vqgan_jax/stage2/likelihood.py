"""Negative log-likelihoods of streams, and bits."""

import numpy as np
import optax

from nn_jax.code_transformer import CodeTransformer

NATS_PER_BIT = float(np.log(2))


def negative_log_likelihoods(module: CodeTransformer, logits, tokens, codes):
    """Nats of each condition token but the first [B, C - 1] (None unless they are predicted), and of each code [B, L]."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    condition_logits, code_logits = logits
    code_nats = cross_entropy(code_logits, codes.reshape(len(codes), -1) + module.code_offset)
    return None if condition_logits is None else cross_entropy(condition_logits, tokens[:, 1:]), code_nats


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy of codes that occur so often, in bits: what a model reaches that knows neither condition nor neighbours."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))
