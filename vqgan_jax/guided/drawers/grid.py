"""Pixel art: a grid of cells of one colour, as rectangles, hexagons, triangles, diamonds or knitted stitches."""

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Int32

from train_jax.errors import ConfigError
from train_jax.options import option
from vqgan_jax.guided.colour import nearest_colours, to_logits
from vqgan_jax.guided.drawers.drawer import Drawer, normal
from vqgan_jax.guided.options import parse_colour

_TRIANGLE_HEIGHT = np.sqrt(3) / 2  # of an equilateral triangle of side 1
_SLOPE = 0.5  # rise of a knitted stitch from its middle to its sides, in widths of a stitch


@dataclasses.dataclass(frozen=True)
class Grid(Drawer):
    """Pixel art: cells of one colour, freely or from a palette."""

    cells: int = option(32, "cells along the shorter side", least=1)
    shape: str = option("rect", "shape of the cells", choices=("rect", "hex", "triangle", "diamond", "knit"))
    colours: tuple[str, ...] = option((), "the only colours of cells; none: all colours")

    def __post_init__(self):
        for name in self.colours:
            parse_colour(name)

    def init(self, size, seeds):
        """Draws logits of cells float32 [n, cells, 3]. Raises ConfigError for cells smaller than a pixel."""
        if self.cells > min(size):
            raise ConfigError(f"cells = {self.cells}: the shorter side has {min(size)} pixels; at most as many cells")
        return normal(seeds, (int(cell_map(self.shape, self.cells, size).max()) + 1, 3), 0.1)

    def encode(self, size, images, z):
        """Computes the mean colour of each cell as logits."""
        cells = cell_map(self.shape, self.cells, size).ravel()
        means = [[np.bincount(cells, image[..., i].ravel()) for i in range(3)] for image in np.asarray(images)]
        return to_logits((np.array(means) / np.bincount(cells)).astype(np.float32).swapaxes(1, 2))

    def render(self, z, context):
        """Fills cells with their colours, or with the nearest ones of the palette."""
        cells = jax.nn.sigmoid(z)
        if self.colours:
            cells = nearest_colours(cells, np.stack([parse_colour(name) for name in self.colours]))
        return cells[cell_map(self.shape, self.cells, context.size)]


@functools.lru_cache(maxsize=8)
def cell_map(shape: str, cells: int, size: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """Computes the index of the cell in which the centre of each pixel lies. All indices from 0 to the largest occur."""
    y, x = np.meshgrid(*((np.arange(side) + 0.5) * cells / min(size) for side in size), indexing="ij")  # in cells
    rows, columns = {"rect": _rect, "hex": _hex, "triangle": _triangle, "diamond": _diamond, "knit": _knit}[shape](y, x)
    pairs = np.stack([rows, columns], axis=-1).reshape(-1, 2)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(size).astype(np.int32)


def _rect(y, x):
    return np.floor(y), np.floor(x)


def _hex(y, x):
    """Nearest centres of rows that are shifted by half a cell in turns. The cells are regular hexagons of width 1."""
    even, odd = (2 * np.round((y / _TRIANGLE_HEIGHT - shift) / 2) + shift for shift in (0, 1))
    columns = np.round(x), np.floor(x) + 0.5
    rows = zip((even, odd), columns, strict=True)
    squares = [(y - _TRIANGLE_HEIGHT * row) ** 2 + (x - column) ** 2 for row, column in rows]
    is_even = squares[0] <= squares[1]
    return np.where(is_even, even, odd), np.where(is_even, *columns)


def _triangle(y, x):
    """Rows of equilateral triangles of side 1, that point up and down in turns."""
    row, strip = np.floor(y / _TRIANGLE_HEIGHT), np.floor(2 * x)
    v, u = y / _TRIANGLE_HEIGHT - row, 2 * x - strip
    is_beyond = np.where((row + strip) % 2 == 0, u > v, u > 1 - v)  # of the edge that divides the strip
    return row, strip + is_beyond


def _diamond(y, x):
    return np.floor(x + y), np.floor(x - y)


def _knit(y, x):
    """Stitches of width and height 1, whose upper and lower edges are a V."""
    return np.floor(y + _SLOPE * np.abs(2 * (x % 1) - 1)), np.floor(x)
