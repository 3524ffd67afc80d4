"""Loudness of a sound in time, for expressions (`guided.curves`)."""

import struct
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.io import wavfile

from train_jax.errors import UserError


def loudness(path: str | Path, fps: float | int, frames: int) -> Float64[np.ndarray, "f"]:
    """Computes the loudness of the sound of each frame, relative to the loudest frame of the file.

    It is the root mean square of the samples of all channels in the 1/fps seconds of the frame, and 0 after the end.

    Args:
      path: .wav file of integers or floats.
      frames: number of frames.

    Raises UserError for a file that is no .wav, or is silent.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are no samples
            rate, samples = wavfile.read(path)
    except (ValueError, EOFError, IndexError, struct.error) as error:
        raise UserError(f"sound {path} is not a .wav file of samples: {error}") from error
    if not len(samples):
        raise UserError(f"sound {path} has no samples")
    middle = 128.0 if samples.dtype == np.uint8 else 0.0  # of the only samples without a sign
    power = ((samples.astype(np.float64) - middle) ** 2).reshape(len(samples), -1).mean(1)
    total = np.concatenate([[0.0], np.cumsum(power)])
    count = max(frames, int(np.ceil(len(power) / rate * fps)))
    ends = np.minimum(np.round(np.arange(count + 1) * rate / fps).astype(int), len(power))
    volumes = np.sqrt(np.diff(total[ends]) / np.maximum(np.diff(ends), 1))
    if not volumes.any():
        raise UserError(f"sound {path} is silent")
    return (volumes / volumes.max())[:frames]
