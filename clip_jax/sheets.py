"""Search results as something to look at: a contact sheet (one picture) or a page (one HTML file).

Data enters as sections of cells: a query with its hits, each a picture with a few words below.
"""

import dataclasses
import functools
import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from clip_jax.index_files import shown
from clip_jax.search import Hit
from train_jax.data.images import BrokenSample, decode
from train_jax.page import data_uri, document, heading, printable

_MARGIN, _GAP, _PAD = 24, 14, 8
_TITLE_SIZE, _TEXT_SIZE = 18, 12
_INK, _GREY, _PAPER, _CARD = "#1c1e21", "#6b7280", "#ffffff", "#f1f2f4"
_GOOD, _BAD = "#15803d", "#b91c1c"
_THUMBNAIL = 256  # pixels, in pages


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture of a sheet.

    Attributes:
      picture: its path, or the picture.
      name, note: two short lines below it.
      right: whether it is a right answer, where that is known: shown by colour and by a sign.
    """

    picture: Path | Image.Image
    name: str
    note: str = ""
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """A title, and the cells below it."""

    title: str
    cells: Sequence[Cell]


def hits_section(title: str, hits: Sequence[Hit], folder: Path) -> Section:
    """Hits of a search, named by their paths below `folder`, with their scores."""

    def name(path: Path) -> str:
        return shown(path.relative_to(folder) if path.is_relative_to(folder) else path)

    return Section(title, [Cell(hit.path, name(hit.path), f"{hit.score:.3f}") for hit in hits])


def heat_sections(picture: Image.Image, texts: Sequence[str], maps: Float[np.ndarray, "n side side"]) -> list[Section]:
    """A picture, and the same below the heat map of each text: cold where the cosine is lowest, hot where it is highest."""
    grey = ImageOps.grayscale(picture).convert("RGB")
    cells = [Cell(picture, "what the model sees")]
    for text, values in zip(texts, maps, strict=True):
        spread = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
        heat = Image.fromarray((255 * matplotlib.colormaps["inferno"](spread)[..., :3]).astype(np.uint8))
        heat = heat.resize(picture.size, Image.Resampling.BICUBIC)
        cells.append(Cell(Image.blend(grey, heat, 0.65), text, f"cosine {values.min():.3f} to {values.max():.3f}"))
    return [Section("Where a text is", cells)]


def contact_sheet(sections: Sequence[Section], *, columns: int, size: int = 160) -> Image.Image:
    """One RGB picture with all sections below each other, `columns` cells a row, each picture within `size` pixels."""
    line = _TEXT_SIZE + 5
    card = (size + 2 * _PAD, size + 2 * _PAD + 2 * line + 2)
    width = 2 * _MARGIN + columns * card[0] + (columns - 1) * _GAP
    title_height = _TITLE_SIZE + 16
    rows = [-(-len(section.cells) // columns) for section in sections]
    heights = [title_height + n * (card[1] + _GAP) + _GAP for n in rows]
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(heights) - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for section, height in zip(sections, heights, strict=True):
        draw.text((_MARGIN, top), _fit(draw, section.title, _TITLE_SIZE, width - 2 * _MARGIN), _INK, _font(_TITLE_SIZE))
        for number, cell in enumerate(section.cells):
            x = _MARGIN + number % columns * (card[0] + _GAP)
            y = top + title_height + number // columns * (card[1] + _GAP)
            _draw_cell(sheet, draw, cell, (x, y), card, size)
        top += height
    return sheet


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, at: tuple, card: tuple, size: int) -> None:
    x, y = at
    edge = {None: None, True: _GOOD, False: _BAD}[cell.right]
    draw.rounded_rectangle((x, y, x + card[0] - 1, y + card[1] - 1), 8, _CARD, edge, 2)
    picture = _thumbnail(cell.picture, size, enlarge=True)
    if picture is not None:
        sheet.paste(picture, (x + _PAD + (size - picture.width) // 2, y + _PAD + (size - picture.height) // 2))
    else:
        draw.text((x + card[0] / 2, y + card[0] / 2), "not readable", _GREY, _font(_TEXT_SIZE), anchor="mm")
    below = y + size + 2 * _PAD - 2
    draw.text((x + _PAD, below), _fit(draw, cell.name, _TEXT_SIZE, size), _INK, _font(_TEXT_SIZE))
    note = _fit(draw, cell.note, _TEXT_SIZE, size - (18 if edge else 0))
    draw.text((x + _PAD, below + _TEXT_SIZE + 5), note, _GREY, _font(_TEXT_SIZE))
    if edge:
        _draw_sign(draw, (x + card[0] - _PAD - 13, below + _TEXT_SIZE + 6), cell.right, edge)


def _draw_sign(draw: ImageDraw.ImageDraw, at: tuple, right: bool, colour: str) -> None:
    """A tick or a cross of 12 pixels: colour alone does not tell everyone."""
    x, y = at
    if right:
        draw.line([(x, y + 6), (x + 4, y + 10), (x + 12, y + 1)], colour, 2, joint="curve")
    else:
        draw.line([(x + 1, y + 1), (x + 11, y + 11)], colour, 2)
        draw.line([(x + 1, y + 11), (x + 11, y + 1)], colour, 2)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font stops at ASCII; Matplotlib's has most alphabets.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _fit(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """The text, its middle left out if it is too wide: both ends of a path tell something."""
    text = " ".join(text.split())
    if draw.textlength(text, _font(size)) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
        if draw.textlength(short, _font(size)) <= width:
            return short
    return "…"


def _thumbnail(picture: Path | Image.Image, size: int, *, enlarge: bool) -> Image.Image | None:
    """The picture within `size` x `size` pixels; None if its file is gone or cannot be read by now."""
    if not isinstance(picture, Image.Image):
        try:
            picture = decode(picture)
        except BrokenSample:
            return None
    if enlarge or max(picture.size) > size:
        return ImageOps.contain(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return picture.convert("RGB")


# ---------------------------------------------------------------------------------------------------------------------
# Pages


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML document that needs no other file: pictures are embedded, names and queries are escaped."""
    return document(title, "\n".join([heading(title, 1), body(sections)]))


def body(sections: Sequence[Section]) -> str:
    """The part of a page that shows sections."""
    found = []
    for section in sections:
        cells = "\n".join(_figure(cell) for cell in section.cells)
        found.append(f'{heading(section.title, 2)}\n<div class="grid">\n{cells}\n</div>')
    return "\n".join(found)


def _figure(cell: Cell) -> str:
    picture = _thumbnail(cell.picture, _THUMBNAIL, enlarge=False)
    name, note = html.escape(printable(cell.name)), html.escape(printable(cell.note))
    if picture is None:
        shown_picture = '<div class="gone">not readable</div>'
    else:
        # PNG for the small and drawn, JPEG where it is much smaller.
        kind = "PNG" if max(picture.size) <= 64 else "JPEG"
        shown_picture = f'<img src="{data_uri(picture, kind)}" alt="{name}">'
    mark = {None: "", True: ' class="right"', False: ' class="wrong"'}[cell.right]
    return f"<figure{mark}>{shown_picture}<figcaption>{name}<span>{note}</span></figcaption></figure>"
