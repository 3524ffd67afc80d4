"""Pictures side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from train_jax.errors import UserError

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


def places(**paths: str | None) -> None:
    """UserError for files that cannot be written, by the name of their option: before hours of work, not after them."""
    for name, path in paths.items():
        if path is None:
            continue
        if name == "folder":
            if Path(path).exists() and not Path(path).is_dir():
                raise UserError(f"--folder {path}: that is a file; name a folder")
            continue
        if Path(path).is_dir():
            raise UserError(f"--{name} {path}: that is a folder; name a file")
        if not Path(path).resolve().parent.is_dir():
            raise UserError(f"--{name} {path}: there is no folder {Path(path).parent}")
    files = {name: Path(path).resolve() for name, path in paths.items() if path is not None and name != "folder"}
    for name, path in files.items():
        for other, taken in files.items():
            if name < other and path == taken:
                raise UserError(f"--{name} and --{other} name the same file, {path}")


def lines(text: str) -> list[str]:
    """The lines of @FILE that say something. UserError for a file that has none, or is no UTF-8."""
    file = Path(text[1:])
    try:
        found = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{text}: {file} is not UTF-8 ({error.reason}); save it as such") from error
    if not found:
        raise UserError(f"{text}: {file} has no line with a prompt")
    return found


def png(path: str, what: str, option: str = "--out") -> Path:
    """The path of a PNG to write; UserError for another suffix. `what` goes there, and `option` gave it, for the message."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{option} {path}: {what} is a PNG; name it so")
    return Path(path)
