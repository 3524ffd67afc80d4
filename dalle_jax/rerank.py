"""CLIP as a judge of drawn pictures (arXiv 2102.12092, section 2.6): how well each fits the prompt it was drawn for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

import clip_jax


def open_judge(judge) -> "clip_jax.Clip":
    """A CLIP, or the one that a path names. Raises LoadError for a path that holds none, TypeError for anything else."""
    if isinstance(judge, str | Path):
        return clip_jax.load(judge)
    if not isinstance(judge, clip_jax.Clip):
        raise TypeError(f"rerank = {judge!r}: it must be a CLIP, the path of one, or 'likelihood'")
    return judge


def fit(
    judge: "clip_jax.Clip", prompts: Sequence[str], images: UInt8[np.ndarray, "p n H W 3"]
) -> Float32[np.ndarray, "p n"]:
    """Cosine of each picture with its prompt."""
    count, n = images.shape[:2]
    seen = judge.encode_image(images.reshape(-1, *images.shape[2:])).reshape(count, n, -1)
    return np.einsum("pnd,pd->pn", seen, judge.encode_text(list(prompts)))
