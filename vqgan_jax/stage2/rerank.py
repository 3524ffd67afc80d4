"""Reranking of samples by the CLIP similarity of image and text (arXiv 2102.12092, section 2.6)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

import clip_jax


def open_reranker(reranker, dtype: str) -> "clip_jax.Clip":
    """Returns a CLIP; loads a path in `dtype`. Raises LoadError for a path without a CLIP, TypeError for other values."""
    if isinstance(reranker, str | Path):
        return clip_jax.load(reranker, dtype=dtype)
    if not isinstance(reranker, clip_jax.Clip):
        raise TypeError(f"rerank = {reranker!r}: it must be a CLIP, the path of a CLIP, or 'likelihood'")
    return reranker


def clip_scores(
    clip: "clip_jax.Clip", texts: Sequence[str], images: UInt8[np.ndarray, "p n H W 3"]
) -> Float32[np.ndarray, "p n"]:
    """Computes the cosine similarity of each image and its text."""
    count, n = images.shape[:2]
    embeddings = clip.encode_image(images.reshape(-1, *images.shape[2:])).reshape(count, n, -1)
    return np.einsum("pnd,pd->pn", embeddings, clip.encode_text(list(texts)))
