"""Bilinear interpolation without antialiasing in NumPy, equal to `tf.image.resize`."""

import numpy as np
from jaxtyping import UInt8


def resize(pixels: UInt8[np.ndarray, "height width c"], width: int, height: int) -> UInt8[np.ndarray, "h w c"]:
    """Resizes an image by bilinear interpolation without antialiasing.

    Results equal big_vision's `resize` bit by bit: the arithmetic is that of TensorFlow's kernel (resize_bilinear_op.cc
    with half-pixel centres: float32, columns before rows), and values are truncated to integers.
    """
    above, below, row_weights = _neighbours(pixels.shape[0], height)
    left, right, column_weights = _neighbours(pixels.shape[1], width)

    def interpolate_columns(row_indices: np.ndarray) -> np.ndarray:
        rows = pixels[row_indices]
        return _lerp(rows[:, left], rows[:, right], column_weights[:, None])

    upper, lower = interpolate_columns(above), interpolate_columns(below)
    return _lerp(upper, lower, row_weights[:, None, None]).astype(np.uint8)


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the source indices before and after each target pixel centre, and the interpolation weights."""
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * (np.float32(source) / np.float32(target))
    centres -= np.float32(0.5)
    floor = np.floor(centres)
    return np.maximum(floor, 0).astype(int), np.minimum(np.ceil(centres), source - 1).astype(int), centres - floor


def _lerp(start: np.ndarray, end: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Interpolates linearly between two arrays, in float32."""
    start, end = start.astype(np.float32), end.astype(np.float32)
    return start + (end - start) * weight
