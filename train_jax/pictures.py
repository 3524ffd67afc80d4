"""Grids of pictures, and PNGs with metadata; shared by command lines, demos and evaluators."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from train_jax.errors import UserError

_LEGIBLE = 128  # pixels along a picture that people can look at
_GAP = 2  # pixels between pictures
_BACKGROUND = 255


def image_grid(rows: Sequence[Sequence[np.ndarray]]) -> UInt8[np.ndarray, "H W 3"]:
    """Arranges rows of uint8 [h, w, 3] pictures of one size in one picture, with white gaps."""
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    shape = (len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    grid = np.full(shape, _BACKGROUND, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + _GAP), x * (width + _GAP)
            grid[top : top + height, left : left + width] = picture
    return grid


def enlarged_grid(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Makes an `image_grid` in which small pictures are enlarged for viewing."""
    grid = Image.fromarray(image_grid(rows))
    times = max(1, _LEGIBLE // rows[0][0].shape[0])
    return grid.resize((grid.width * times, grid.height * times), Image.Resampling.NEAREST)


def in_rows(pictures: Sequence[np.ndarray] | np.ndarray, columns: int | None = None) -> list[list[np.ndarray]]:
    """Splits pictures into rows of `columns`; None: about as many rows as columns."""
    columns = columns or int(np.ceil(len(pictures) ** 0.5))
    return [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]


def save_png(picture: Image.Image, path: str | Path, key: str, about: Mapping[str, Any]) -> None:
    """Writes a PNG whose text `key` holds `about` as JSON."""
    text = PngInfo()
    text.add_itxt(key, json.dumps(dict(about), ensure_ascii=False))
    picture.save(path, pnginfo=text)


def read_png_text(path: str | Path, key: str) -> str | None:
    """Reads the text `key` of a PNG; None if missing. UserError for a file that is no readable picture."""
    try:
        with Image.open(path) as image:
            return getattr(image, "text", {}).get(key)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable PNG ({error})") from error
