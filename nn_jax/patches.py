"""Images of native aspect ratio as sequences of patches (NaFlex, arXiv 2502.14786, section 2.4), for NumPy and JAX arrays.

Does not import JAX, since the processes that read data use it, too.
"""

from typing import Any, NamedTuple


class Patches(NamedTuple):
    """Images as sequences of patches in row-major order.

    Attributes:
      pixels: float32 [n, patches, patch * patch * 3]: pixels of each patch by row, column and channel; padded.
      grid: int32 [n, 2]: numbers of rows and columns of patches; the patches after rows * columns are padding.
    """

    pixels: Any
    grid: Any


def cut_patches(images, patch: int):
    """Cuts images [..., h, w, 3], NumPy or JAX arrays, into patches [..., h / patch * w / patch, patch * patch * 3]."""
    *lead, height, width, channels = images.shape
    x = images.reshape(*lead, height // patch, patch, width // patch, patch, channels).swapaxes(-4, -3)
    return x.reshape(*lead, -1, patch * patch * channels)
