"""Image grids, and PNGs with metadata."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from train_jax.errors import UserError

_MIN_HEIGHT = 128  # pixels, height to which small images are enlarged for viewing
_GAP = 2  # pixels between images
_BACKGROUND = 255


def image_grid(rows: Sequence[Sequence[np.ndarray]]) -> UInt8[np.ndarray, "H W 3"]:
    """Arranges rows of uint8 [h, w, 3] images of equal size in a grid with white gaps."""
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    shape = (len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    grid = np.full(shape, _BACKGROUND, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + _GAP), x * (width + _GAP)
            grid[top : top + height, left : left + width] = image
    return grid


def enlarged_grid(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Makes an image grid for viewing, with small images enlarged by an integer factor."""
    grid = Image.fromarray(image_grid(rows))
    factor = max(1, _MIN_HEIGHT // rows[0][0].shape[0])
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


def split_into_rows(images: Sequence[np.ndarray] | np.ndarray, columns: int | None = None) -> list[list[np.ndarray]]:
    """Splits images into rows.

    Args:
      columns: number of images per row; None: a nearly square grid.
    """
    columns = columns or int(np.ceil(len(images) ** 0.5))
    return [list(images[i : i + columns]) for i in range(0, len(images), columns)]


def draw_as_text(image: UInt8[np.ndarray, "H W 3"], columns: int) -> str:
    """Draws an image for a terminal of 24-bit colours: each character is a half block, two pixels one above the other.

    An image wider than `columns` is made as wide.
    """
    width = min(columns, image.shape[1])
    height = 2 * max(1, round(width * image.shape[0] / image.shape[1] / 2))
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    lines = [
        "".join("\x1b[38;2;{};{};{};48;2;{};{};{}m\u2580".format(*above, *below) for above, below in zip(*pair, strict=True))
        for pair in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True)
    ]
    return "".join(f"{line}\x1b[0m\n" for line in lines)


def save_png(image: Image.Image, path: str | Path, key: str, metadata: Mapping[str, Any]) -> None:
    """Writes a PNG with metadata, stored as JSON in the text chunk `key`."""
    text = PngInfo()
    text.add_itxt(key, json.dumps(dict(metadata), ensure_ascii=False))
    image.save(path, "PNG", pnginfo=text)


class PictureFolder:
    """Folder of the PNGs of one command, which the same command continues after an interruption.

    A file is either complete or absent. Its metadata tell whether it is what the command would write.

    Args:
      key: name of the text chunk of the metadata.
      metadata: metadata that all files share.
    """

    def __init__(self, folder: str | Path, key: str, metadata: Mapping[str, Any]):
        self._folder, self._key, self._metadata = Path(folder), key, dict(metadata)
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Returns the path of a picture."""
        return self._folder / name

    def holds(self, name: str, /, **fields: Any) -> bool:
        """Returns whether a file exists. Raises UserError if its metadata are not those of this command and `fields`."""
        file = self.path(name)
        if not file.is_file():
            return False
        text = read_png_text(file, self._key)
        if text is None or json.loads(text) != json.loads(json.dumps(self._metadata | fields)):
            raise UserError(f"{file} was written by another command, with other options or another model: name a new folder")
        return True

    def save(self, image: UInt8[np.ndarray, "H W 3"], name: str, /, **fields: Any) -> None:
        """Writes a PNG, with `fields` added to its metadata."""
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        save_png(Image.fromarray(image), part, self._key, self._metadata | fields)
        part.replace(file)


def read_png_text(path: str | Path, key: str) -> str | None:
    """Reads the text chunk `key` of a PNG; returns None if it is missing.

    Raises UserError for a file that is not a readable image.
    """
    try:
        with Image.open(path) as image:
            return getattr(image, "text", {}).get(key)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable PNG ({error})") from error
