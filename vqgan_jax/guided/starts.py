"""Initial images and codes: random codes, an image file, or generated noise. NumPy only, deterministic for a seed."""

import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image, ImageOps

from train_jax.data.errors import BrokenSample
from train_jax.data.images import decode
from train_jax.errors import ConfigError

_PAPER = 200 / 255  # grey of the "plain" start: light, but near every colour
_OCTAVES = 6  # number of octaves of fractal noise
_PERSISTENCE = 0.6  # ratio of the amplitudes of successive octaves


def sample_codes(seed: int, shape: tuple[int, int], num_codes: int) -> Int32[np.ndarray, "h w"]:
    """Samples a grid of codes uniformly."""
    return np.random.default_rng(seed).integers(0, num_codes, shape, np.int32)


def noise_image(kind: str, seed: int, size: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    """Generates an image in [0, 1].

    Args:
      kind: "pixels" (uniform noise), "gradient" (between random corner colours), "fractal" (noise of several octaves),
        or "plain" (light grey).
    """
    if kind == "plain":
        return np.full((*size, 3), _PAPER, np.float32)
    rng = np.random.default_rng(seed)
    if kind == "pixels":
        return rng.random((*size, 3), np.float32)
    if kind == "gradient":
        return _interpolate(rng.random((2, 2, 3), np.float32), size)
    if kind != "fractal":
        raise ValueError(f"kind = {kind!r}; it must be pixels, gradient, fractal or plain")
    total = np.zeros((*size, 3), np.float32)
    for octave in range(1, _OCTAVES + 1):
        grid = [min(2**octave, side) for side in size]
        total += _PERSISTENCE**octave * (_interpolate(rng.random((*grid, 3), np.float32), size) - 0.5)
    low, high = total.min((0, 1), keepdims=True), total.max((0, 1), keepdims=True)
    return (total - low) / np.maximum(high - low, 1e-6)


def _interpolate(grid: Float32[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    """Interpolates a grid bilinearly, with aligned corners."""
    for axis, side in enumerate(size):
        positions = np.linspace(0, grid.shape[axis] - 1, side, dtype=np.float32)
        below = np.minimum(positions.astype(np.int32), max(grid.shape[axis] - 2, 0))
        above = np.minimum(below + 1, grid.shape[axis] - 1)
        fraction = np.expand_dims(positions - below, [i for i in range(3) if i != axis])
        grid = (1 - fraction) * grid.take(below, axis) + fraction * grid.take(above, axis)
    return grid.astype(np.float32)


def load_image(source, size: tuple[int, int], name: str) -> Float32[np.ndarray, "H W 3"]:
    """Loads an image as pixels in [0, 1], resized to cover `size` and centre-cropped.

    Args:
      source: a path, a PIL image, or an array [H, W, 3], uint8 or float in [0, 1].
      name: name of the option, for messages.

    Raises BrokenSample for an unreadable file, ConfigError for an array of another shape, type or range.
    """
    if isinstance(source, np.ndarray):
        source = Image.fromarray(_to_uint8(source, 3, name))
    try:
        source = decode(source)
    except BrokenSample as error:
        raise BrokenSample(f"{name} {source}: {error}") from error
    fitted = ImageOps.fit(source, size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.float32) / 255


def load_overlay(source, size: tuple[int, int], may_hide: bool = False) -> Float32[np.ndarray, "H W 4"]:
    """Loads an RGBA image like `load_image`.

    Args:
      may_hide: whether the image may hide the whole painting; otherwise raises ConfigError if it has no transparency.
    """
    if isinstance(source, np.ndarray):
        source = Image.fromarray(_to_uint8(source, 4, "overlay"))
    try:
        source = decode(source, convert=_keep_transparency)
    except BrokenSample as error:
        raise BrokenSample(f"overlay {source}: {error}") from error
    if not may_hide and not source.has_transparency_data:
        raise ConfigError("overlay has no transparency: it would hide the whole painting")
    fitted = ImageOps.fit(source.convert("RGBA"), size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.float32) / 255


def _keep_transparency(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _to_uint8(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Checks an image array and converts it to uint8."""
    if array.ndim != 3 or array.shape[-1] != channels or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ConfigError(
            f"{name} must be [H, W, {channels}], uint8 or float in [0, 1], not {array.dtype} {list(array.shape)}"
        )
    if array.dtype == np.uint8:
        return array
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ConfigError(f"{name}: float images must lie in [0, 1]; these range from {array.min()} to {array.max()}")
    return np.round(255 * array).astype(np.uint8)
