"""Bilinear interpolation without antialiasing, as `tf.image.resize` computes it; NumPy alone."""

import numpy as np
from jaxtyping import UInt8


def resize(pixels: UInt8[np.ndarray, "height width c"], width: int, height: int) -> UInt8[np.ndarray, "h w c"]:
    """Interpolates each pixel between the four nearest source pixels, without antialiasing.

    In the arithmetic of TensorFlow's kernel (resize_bilinear_op.cc with half-pixel centres: float32, columns before rows)
    and truncated to integers as big_vision's `resize` does, so that the results are equal to the last bit.
    """
    above, below, row_weights = _neighbours(pixels.shape[0], height)
    left, right, column_weights = _neighbours(pixels.shape[1], width)

    def row(index: np.ndarray) -> np.ndarray:
        rows = pixels[index]
        return _lerp(rows[:, left], rows[:, right], column_weights[:, None])

    return _lerp(row(above), row(below), row_weights[:, None, None]).astype(np.uint8)


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the source indices before and after each target pixel centre, and the interpolation weight."""
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * (np.float32(source) / np.float32(target))
    centres -= np.float32(0.5)
    floor = np.floor(centres)
    return np.maximum(floor, 0).astype(int), np.minimum(np.ceil(centres), source - 1).astype(int), centres - floor


def _lerp(start: np.ndarray, end: np.ndarray, weight: np.ndarray) -> np.ndarray:
    start, end = start.astype(np.float32), end.astype(np.float32)
    return start + (end - start) * weight
