"""Colour jitter: random brightness, contrast, saturation and hue of training images, in NumPy."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

_LUMA = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601
# RGB to YIQ, the colour space of NTSC: luma, and two axes of colour in which a hue is an angle.
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Random linear change of an image's colours.

    Attributes:
      brightness, contrast, saturation: ranges [1 - x, 1 + x] of uniform factors, of at least 0.
      hue: largest change of the hue, as a share of the circle, at most 0.5.
      probability: probability that an image is changed.
      grey: probability that an image is made grey, after the other changes.

    The order is fixed: brightness, contrast around the image's mean luma, saturation, and the hue as a rotation of YIQ,
    which keeps the luma. Values are clipped once, at the end.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0
    grey: float = 0.0

    def __call__(self, pixels: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """Changes the colours of an image, or returns it as it is."""
        factors = np.ones(3)
        angle = 0.0
        if rng.random() < self.probability:
            strengths = np.array([self.brightness, self.contrast, self.saturation])
            factors = rng.uniform(np.maximum(1 - strengths, 0), 1 + strengths)
            angle = 2 * np.pi * rng.uniform(-self.hue, self.hue)
        brightness, contrast, saturation = factors.tolist()
        if rng.random() < self.grey:
            saturation = 0.0
        if (brightness, contrast, saturation, angle) == (1, 1, 1, 0):
            return pixels
        flat = pixels.reshape(-1, 3).astype(np.float32)
        mean = brightness * float(flat.mean(axis=0) @ _LUMA)
        matrix = color_matrix(saturation, angle)
        # Rows of the matrix sum to 1: it leaves the grey that contrast adds as it is.
        changed = flat @ (brightness * contrast * matrix.T).astype(np.float32) + np.float32((1 - contrast) * mean)
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8).reshape(pixels.shape)


def color_matrix(saturation: float, angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the matrix of RGB columns that scales the saturation and rotates the hue by an angle in radians."""
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    return _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
