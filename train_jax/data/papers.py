"""Papers: backgrounds of pictures with transparency, on which they are turned and placed at random, as augmentation."""

import dataclasses

import numpy as np
from PIL import Image

KINDS = ("white", "coloured", "noisy")
_DARKEST = 96  # least value of a channel of a coloured paper: black outlines stay visible
_NOISE = (0.02, 0.08)  # range of the standard deviation of a noisy paper, as a share of the range of pixels


@dataclasses.dataclass(frozen=True)
class Papers:
    """Random backgrounds, sizes, angles and places.

    Attributes:
      kinds: kinds of papers, one of which is chosen uniformly: "white"; "coloured", of one colour that is uniform in RGB;
        "noisy", a coloured one with Gaussian noise on each pixel and channel.
      sizes: range of the picture's side, as a share of the paper's, which has the size of the original picture.
      shift: maximum distance of the picture's centre from the paper's in each direction, as a share of the side.
      rotate: maximum rotation of the picture around its centre, in degrees.

    Parts of a picture beyond its paper are cut off.
    """

    kinds: tuple[str, ...] = ("white",)
    sizes: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    rotate: float = 0.0

    def place(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Places a picture with transparency on a random paper; returns an RGB image of the same size."""
        width, height = image.size
        paper = self._sample_paper(width, height, rng)
        size = rng.uniform(*self.sizes)
        offsets = rng.uniform(-self.shift, self.shift, 2)
        shape = max(1, round(width * size)), max(1, round(height * size))
        # Pillow resizes and rotates colours weighted by their opacity, so that transparent pixels leave no fringe.
        picture = image.convert("RGBA").resize(shape, Image.Resampling.BICUBIC)
        if self.rotate:
            picture = picture.rotate(rng.uniform(-self.rotate, self.rotate), Image.Resampling.BICUBIC, expand=True)
            shape = picture.size
        left, top = (
            round((side - length) / 2 + side * offset)
            for side, length, offset in zip(image.size, shape, offsets, strict=True)
        )
        paper.paste(picture, (left, top), picture)
        return paper

    def _sample_paper(self, width: int, height: int, rng: np.random.Generator) -> Image.Image:
        """Samples a paper."""
        kind = self.kinds[rng.integers(len(self.kinds))]
        if kind == "white":
            return Image.new("RGB", (width, height), (255, 255, 255))
        pixels = np.broadcast_to(rng.uniform(_DARKEST, 255, 3), (height, width, 3))
        if kind == "noisy":
            pixels = pixels + rng.normal(0, 255 * rng.uniform(*_NOISE), pixels.shape)
        return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
