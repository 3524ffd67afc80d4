"""The 17 wallpaper groups: pictures that translations, rotations, mirrors and glides leave as they are.

A pixel takes the colour of that point of its orbit which is nearest to the centre of the picture, so that one fundamental
domain is drawn and all others are its copies. Twelve groups have cells of whole pixels, and orbits of pixels. Lattices with
rotations by 120 degrees have none: there, points of the domain are read between pixels, bilinearly.
"""

import functools
import itertools
import math

import numpy as np
from jaxtyping import Float64

# Generators beside the translations, in coordinates of the cell (International Tables for Crystallography, volume A).
GROUPS = {
    "p1": (),
    "p2": ("-x,-y",),
    "pm": ("-x,y",),
    "pg": ("-x,y+1/2",),
    "cm": ("-x,y", "x+1/2,y+1/2"),
    "pmm": ("-x,y", "x,-y"),
    "pmg": ("-x,-y", "-x+1/2,y"),
    "pgg": ("-x,-y", "-x+1/2,y+1/2"),
    "cmm": ("-x,y", "x,-y", "x+1/2,y+1/2"),
    "p4": ("-y,x",),
    "p4m": ("-y,x", "-x,y"),
    "p4g": ("-y,x", "-x+1/2,y+1/2"),
    "p3": ("-y,x-y",),
    "p3m1": ("-y,x-y", "-y,-x"),
    "p31m": ("-y,x-y", "y,x"),
    "p6": ("x-y,x",),
    "p6m": ("x-y,x", "y,x"),
}
HEXAGONAL = ("p3", "p3m1", "p31m", "p6", "p6m")
_ROW_HEIGHT = math.sqrt(3) / 2  # of a lattice of equilateral triangles, in sides of the cell
_DECIMALS = 6  # of positions in pixels, so that points at the same distance are compared alike

# For both coordinates, the factors of x and y, and the shift in halves of the cell.
Operation = tuple[tuple[int, int, int], tuple[int, int, int]]


def cell_side(group: str, cells: int, size: tuple[int, int]) -> int:
    """Returns the side of a cell in pixels: even, since groups halve it. 0 or 1 pixel is too small for a cell.

    The domain nearest to the centre is in the picture: of hexagonal groups a hexagon of width 1 and height 2 / sqrt(3).
    """
    height = 1 / _ROW_HEIGHT if group in HEXAGONAL else 1
    return int(min(size) / (2 * cells * height)) * 2


@functools.lru_cache(maxsize=8)
def orbit_points(
    group: str, side: int, size: tuple[int, int]
) -> tuple[Float64[np.ndarray, "H W"], Float64[np.ndarray, "H W"]]:
    """Computes the row and the column of the point from which each pixel takes its colour; whole numbers are pixels."""
    y, x = (np.arange(length) - length // 2 + 0.5 for length in size)
    y, x = nearest_points(group, side, *np.meshgrid(y, x, indexing="ij"))
    return y + size[0] // 2 - 0.5, x + size[1] // 2 - 0.5


def nearest_points(
    group: str, side: int, y: Float64[np.ndarray, "*n"], x: Float64[np.ndarray, "*n"]
) -> tuple[Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"]]:
    """Finds the point of each orbit that is nearest to the origin; of several the first in reading order.

    Args:
      y, x: downwards and to the right, in pixels from the origin, which is a centre of rotation if the group has one.
    """
    is_hexagonal = group in HEXAGONAL
    if is_hexagonal:  # coordinates along the sides of the cell, the second of which is at 120 degrees to the first
        y = y / _ROW_HEIGHT
        x = x + y / 2
    best = np.full((3, *y.shape), np.inf)
    for operation, corner in itertools.product(operations(group), itertools.product((0, side), repeat=2)):
        u, v = (np.mod(a * x + b * y + s * side / 2, side) - k for (a, b, s), k in zip(operation, corner, strict=True))
        if is_hexagonal:
            u, v = u - v / 2, v * _ROW_HEIGHT
        point = np.round(np.stack([u * u + v * v, v, u]), _DECIMALS)
        (d0, v0, u0), (d1, v1, u1) = point, best
        best = np.where((d0 < d1) | ((d0 == d1) & ((v0 < v1) | ((v0 == v1) & (u0 < u1)))), point, best)
    return best[1], best[2]


@functools.cache
def operations(group: str) -> tuple[Operation, ...]:
    """Returns the operations of a group up to translations by whole cells."""
    generators = [np.array([*map(_parse, text.split(",")), (0, 0, 1)]) for text in GROUPS[group]]
    known, unseen = {}, [np.eye(3, dtype=int)]
    while unseen:
        operation = unseen.pop()
        operation[:2, 2] %= 2
        key = tuple(map(tuple, operation[:2].tolist()))
        if key not in known:
            known[key] = operation
            unseen += [generator @ operation for generator in generators]
    return tuple(sorted(known))


def _parse(text: str) -> tuple[int, int, int]:
    """Parses a coordinate of an image of the point (x, y), such as -x+1/2."""
    terms = text.replace("-", "+-").split("+")
    return *((name in terms) - (f"-{name}" in terms) for name in "xy"), int("1/2" in terms)
