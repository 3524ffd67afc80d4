"""Filters of rendered pictures: a wallpaper group and colours of a palette, which CLIPs see, and sharpening at the end."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train_jax.errors import ConfigError
from vqgan_jax.guided import colour, wallpaper
from vqgan_jax.guided.augment import linear_weights, sample
from vqgan_jax.guided.options import Options, parse_colour


class Filters(NamedTuple):
    """Enabled filters of a compiled program.

    Attributes:
      wallpaper: key of `wallpaper.GROUPS`; "": no symmetry.
      cell: side of a cell in pixels.
      colours: RGB colours in [0, 1], the only ones of pictures; (): all colours.
      sharpen: whether final pictures are sharpened.
    """

    wallpaper: str = ""
    cell: int = 0
    colours: tuple[tuple[float, ...], ...] = ()
    sharpen: bool = False


def make_filters(options: Options, sharpen: bool, size: tuple[int, int]) -> Filters:
    """Collects the filters of a painting. Raises ConfigError for cells without pixels.

    Args:
      sharpen: whether a painting of the batch is sharpened.
    """
    group, cell = "", 0
    if options.wallpaper is not None:
        group, cells = options.wallpaper.wallpaper, options.wallpaper.wallpaper_cells
        cell = wallpaper.cell_side(group, cells, size)
        if not cell:
            most = max((n for n in range(1, cells) if wallpaper.cell_side(group, n, size)), default=0)
            raise ConfigError(
                f"wallpaper_cells = {cells}: a cell of {group} needs 2 pixels, and a picture of {size[0]} x {size[1]} has "
                f"room for {most}"
            )
    names = options.lookup.lookup if options.lookup else ()
    return Filters(group, cell, tuple(tuple(parse_colour(name).tolist()) for name in names), sharpen)


def enlarge_cells(filters: Filters, factor: int) -> Filters:
    """Returns the filters of a picture that is `factor` times as large: its cells still fit."""
    return filters._replace(cell=filters.cell * factor)


def apply_filters(
    filters: Filters, x: Float[Array, "H W c"], sharpen: Float[Array, ""] | None = None
) -> Float[Array, "H W c"]:
    """Applies the filters to a rendered picture, RGB or RGBA.

    Args:
      sharpen: amount by which the picture is sharpened; None: not at all, as in what the CLIPs see.
    """
    if filters.wallpaper:
        x = symmetrise(x, filters.wallpaper, filters.cell)
    if sharpen is not None:
        x = sharpen_edges(x, sharpen)
    if filters.colours:
        pixels = colour.nearest_colours(x[..., :3].reshape(-1, 3), np.array(filters.colours, np.float32))
        x = jnp.concatenate([pixels.reshape(*x.shape[:2], 3), x[..., 3:]], axis=-1)
    return x


def symmetrise(x: Float[Array, "H W c"], group: str, cell: int) -> Float[Array, "H W c"]:
    """Makes a picture invariant under a wallpaper group with cells of `cell` pixels."""
    size = x.shape[:2]
    points = wallpaper.orbit_points(group, cell, size)
    weights = [linear_weights(jnp.asarray(p.ravel(), jnp.float32), side) for p, side in zip(points, size, strict=True)]
    return sample(x, *weights).reshape(x.shape)


def sharpen_edges(x: Float[Array, "H W c"], amount: Float[Array, ""]) -> Float[Array, "H W c"]:
    """Adds `amount` times the difference to a blurred picture (unsharp mask), of the binomial window 1, 2, 1."""
    blurred = x
    for axis in (0, 1):
        padding = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        before, here, after = (
            jnp.take(jnp.pad(blurred, padding, mode="edge"), np.arange(x.shape[axis]) + i, axis) for i in range(3)
        )
        blurred = (before + 2 * here + after) / 4
    return x + amount * (x - blurred)
