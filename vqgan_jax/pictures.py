"""Pictures side by side."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_SEEN = 128  # pixels along a picture that people can look at
_GAP = 2  # pixels between pictures
_PAPER = 255


def grid(rows: Sequence[Sequence[np.ndarray]]) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of uint8 [h, w, 3] pictures of one size as one picture, with white between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), _PAPER, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + _GAP), x * (width + _GAP)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """A `grid` in which small pictures are enlarged for people."""
    picture = Image.fromarray(grid(rows))
    times = max(1, _SEEN // rows[0][0].shape[0])
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
