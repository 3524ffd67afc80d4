"""Filters of the picture, and its copies."""

import dataclasses

from train_jax.options import option
from vqgan_jax.guided import wallpaper
from vqgan_jax.guided.options.group import Group, traced_option
from vqgan_jax.guided.options.losses import parse_colour


@dataclasses.dataclass(frozen=True)
class Wallpaper(Group):
    """Wallpaper group"""

    needs = {"wallpaper": ()}

    wallpaper: str | None = option(
        None, f"symmetry of the picture, one of {', '.join(wallpaper.GROUPS)}", choices=tuple(wallpaper.GROUPS)
    )
    wallpaper_cells: int = option(2, "cells along the shorter side", least=1)


@dataclasses.dataclass(frozen=True)
class Lookup(Group):
    """Colour lookup"""

    needs = {"lookup": ()}

    lookup: tuple[str, ...] = option((), "the only colours of the picture, separated by commas: each pixel has the nearest")

    def __post_init__(self):
        for name in self.lookup:
            parse_colour(name)


@dataclasses.dataclass(frozen=True)
class Tile(Group):
    """Tiles"""

    needs = {"tile": ()}

    tile: tuple[int, int] = option(
        (1, 1), "(rows, columns) of copies side by side that CLIPs see, so that the picture has no seams", least=1, most=8
    )


@dataclasses.dataclass(frozen=True)
class Sharpen(Group):
    """Sharpening"""

    needs = {"sharpen": ()}

    sharpen: float = traced_option(0.0, "amount by which edges of final pictures are sharpened", least=0)
