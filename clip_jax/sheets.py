"""Renders search results as a contact sheet (one image) or as a page (one HTML file).

The input is a list of sections, one per query. A section has one cell per hit: an image with two captions.
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

from clip_jax.index_files import display_path
from clip_jax.search import Hit
from train_jax.data.images import BrokenSample, decode
from train_jax.page import data_uri, document, heading, printable

_MARGIN, _GAP, _PAD = 24, 14, 8
_TITLE_SIZE, _TEXT_SIZE = 18, 12
_INK, _GREY, _PAPER, _CARD = "#1c1e21", "#6b7280", "#ffffff", "#f1f2f4"
_GOOD, _BAD = "#15803d", "#b91c1c"
_THUMBNAIL = 256  # side of the thumbnails in pages, in pixels


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image of a sheet, with captions.

    Attributes:
      picture: image, or path of an image.
      name, note: two lines of text below the image.
      correct: whether the hit is correct, shown by colour and by a mark; None: unknown, not shown.
    """

    picture: Path | Image.Image
    name: str
    note: str = ""
    correct: bool | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Cells with a title."""

    title: str
    cells: Sequence[Cell]


def make_hits_section(title: str, hits: Sequence[Hit], folder: Path) -> Section:
    """Makes the section of a search result. Cells show the score and the path relative to `folder`."""

    def name(path: Path) -> str:
        return display_path(path.relative_to(folder) if path.is_relative_to(folder) else path)

    return Section(title, [Cell(hit.path, name(hit.path), f"{hit.score:.3f}") for hit in hits])


def make_heat_sections(
    picture: Image.Image, texts: Sequence[str], maps: Float[np.ndarray, "n side side"]
) -> list[Section]:
    """Makes a section with an image and one heat map per text. Colours range from the lowest to the highest cosine."""
    grey = ImageOps.grayscale(picture).convert("RGB")
    cells = [Cell(picture, "what CLIP sees")]
    for text, values in zip(texts, maps, strict=True):
        scaled = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
        heat = Image.fromarray((255 * matplotlib.colormaps["inferno"](scaled)[..., :3]).astype(np.uint8))
        heat = heat.resize(picture.size, Image.Resampling.BICUBIC)
        cells.append(Cell(Image.blend(grey, heat, 0.65), text, f"cosine {values.min():.3f} to {values.max():.3f}"))
    return [Section("Heat maps", cells)]


def render_contact_sheet(sections: Sequence[Section], *, columns: int, size: int = 160) -> Image.Image:
    """Renders sections as one RGB image, with `columns` cells per row and thumbnails of at most `size` pixels."""
    line = _TEXT_SIZE + 5
    card = (size + 2 * _PAD, size + 2 * _PAD + 2 * line + 2)
    width = 2 * _MARGIN + columns * card[0] + (columns - 1) * _GAP
    title_height = _TITLE_SIZE + 16
    rows = [-(-len(section.cells) // columns) for section in sections]
    heights = [title_height + n * (card[1] + _GAP) + _GAP for n in rows]
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(heights) - _GAP), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    top = _MARGIN
    for section, height in zip(sections, heights, strict=True):
        title = _shorten(canvas, section.title, _TITLE_SIZE, width - 2 * _MARGIN)
        canvas.text((_MARGIN, top), title, _INK, _load_font(_TITLE_SIZE))
        for index, cell in enumerate(section.cells):
            x = _MARGIN + index % columns * (card[0] + _GAP)
            y = top + title_height + index // columns * (card[1] + _GAP)
            _draw_cell(sheet, canvas, cell, (x, y), card, size)
        top += height
    return sheet


def _draw_cell(
    sheet: Image.Image, canvas: ImageDraw.ImageDraw, cell: Cell, corner: tuple, card: tuple, size: int
) -> None:
    x, y = corner
    edge = {None: None, True: _GOOD, False: _BAD}[cell.correct]
    canvas.rounded_rectangle((x, y, x + card[0] - 1, y + card[1] - 1), 8, _CARD, edge, 2)
    picture = _make_thumbnail(cell.picture, size, enlarge=True)
    if picture is not None:
        sheet.paste(picture, (x + _PAD + (size - picture.width) // 2, y + _PAD + (size - picture.height) // 2))
    else:
        canvas.text((x + card[0] / 2, y + card[0] / 2), "not readable", _GREY, _load_font(_TEXT_SIZE), anchor="mm")
    below = y + size + 2 * _PAD - 2
    canvas.text((x + _PAD, below), _shorten(canvas, cell.name, _TEXT_SIZE, size), _INK, _load_font(_TEXT_SIZE))
    note = _shorten(canvas, cell.note, _TEXT_SIZE, size - (18 if edge else 0))
    canvas.text((x + _PAD, below + _TEXT_SIZE + 5), note, _GREY, _load_font(_TEXT_SIZE))
    if edge:
        _draw_mark(canvas, (x + card[0] - _PAD - 13, below + _TEXT_SIZE + 6), cell.correct, edge)


def _draw_mark(canvas: ImageDraw.ImageDraw, corner: tuple, correct: bool, colour: str) -> None:
    """Draws a tick or a cross of 12 pixels, for colour-blind readers."""
    x, y = corner
    if correct:
        canvas.line([(x, y + 6), (x + 4, y + 10), (x + 12, y + 1)], colour, 2, joint="curve")
    else:
        canvas.line([(x + 1, y + 1), (x + 11, y + 11)], colour, 2)
        canvas.line([(x + 1, y + 11), (x + 11, y + 1)], colour, 2)


@functools.cache
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's default font covers only ASCII; Matplotlib's covers most alphabets.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _shorten(canvas: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """Shortens a text to `width` pixels by removing its middle, since both ends of a path are informative."""
    text = " ".join(text.split())
    if canvas.textlength(text, _load_font(size)) <= width:
        return text
    for length in range(len(text) - 1, 1, -1):
        short = text[: length // 2] + "…" + text[len(text) - (length - length // 2) :]
        if canvas.textlength(short, _load_font(size)) <= width:
            return short
    return "…"


def _make_thumbnail(picture: Path | Image.Image, size: int, *, enlarge: bool) -> Image.Image | None:
    """Resizes an image to fit `size` x `size` pixels. Returns None if the file is missing or unreadable."""
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


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Renders sections as one self-contained HTML document. Images are embedded, names and queries are escaped."""
    return document(title, "\n".join([heading(title, 1), render_body(sections)]))


def render_body(sections: Sequence[Section]) -> str:
    """Renders sections as the body of an HTML page."""
    blocks = []
    for section in sections:
        cells = "\n".join(_render_figure(cell) for cell in section.cells)
        blocks.append(f'{heading(section.title, 2)}\n<div class="grid">\n{cells}\n</div>')
    return "\n".join(blocks)


def _render_figure(cell: Cell) -> str:
    picture = _make_thumbnail(cell.picture, _THUMBNAIL, enlarge=False)
    name, note = html.escape(printable(cell.name)), html.escape(printable(cell.note))
    if picture is None:
        content = '<div class="gone">not readable</div>'
    else:
        # JPEG files of large images are much smaller than PNG files.
        file_format = "PNG" if max(picture.size) <= 64 else "JPEG"
        content = f'<img src="{data_uri(picture, file_format)}" alt="{name}">'
    attribute = {None: "", True: ' class="right"', False: ' class="wrong"'}[cell.correct]
    return f"<figure{attribute}>{content}<figcaption>{name}<span>{note}</span></figcaption></figure>"
