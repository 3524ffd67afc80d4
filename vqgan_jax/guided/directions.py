"""Directions of embeddings: from the mean of some sentences to that of others, in a file that belongs to its CLIPs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clip_jax.clip import Clip
from train_jax.data.files import read_arrays
from train_jax.errors import ConfigError


def compute_direction(clip: Clip, start: Sequence[str], end: Sequence[str]) -> Float32[np.ndarray, "d"]:
    """Computes the unit vector along the difference of the mean embeddings, from `start` to `end`.

    Raises ConfigError if the means are equal.
    """
    difference = clip.encode_text(list(end)).mean(0) - clip.encode_text(list(start)).mean(0)
    length = np.linalg.norm(difference)
    if length == 0:
        raise ConfigError(f"{clip.name} embeds both lists of sentences alike: a direction needs two that differ")
    return (difference / length).astype(np.float32)


def save(path: str | Path, clips: Sequence[Clip], start: Sequence[str], end: Sequence[str]) -> None:
    """Writes the direction of each CLIP with its fingerprint, and the sentences, to an .npz file."""
    vectors = {clip.fingerprint: compute_direction(clip, start, end) for clip in clips}
    with open(path, "wb") as file:
        np.savez(file, clips=np.array(list(vectors)), start=np.array(start), end=np.array(end), **vectors)


def load(path: str, clip: Clip) -> Float32[np.ndarray, "d"]:
    """Loads the direction of a CLIP, a unit vector. Raises ConfigError for other files, and files of other CLIPs."""
    try:
        fingerprints = [str(name) for name in read_arrays(path, ("clips",))["clips"]]
        vectors = read_arrays(path, fingerprints)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"direction={path}: it must be a file written by vqgan-jax direction ({error})") from error
    if clip.fingerprint not in vectors:
        known = ", ".join(name[:12] for name in fingerprints)
        raise ConfigError(
            f"direction={path} is of CLIPs of SHA-256 {known}, and {clip.name} is {clip.fingerprint[:12]}: make one for "
            "each --clip by vqgan-jax direction"
        )
    return vectors[clip.fingerprint]
