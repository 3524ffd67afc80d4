"""Presets: sets of options named for looks. What a user states overrides them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from train_jax import options as schema
from train_jax.options import option
from vqgan_jax.guided.options.drawing import Drawing, parse_assignments
from vqgan_jax.guided.options.group import Group


class Look(NamedTuple):
    """Description and options of a preset."""

    text: str
    options: Mapping[str, Any]


# Options of a drawer are texts, as on the command line. Small cutouts show no whole shapes: looks of few shapes avoid them.
TABLE = {
    "pixel-art": Look(
        "squares of any colour, as on an old screen",
        {"drawer": "grid", "drawer_options": {"cells": "32"}, "cut_min": 0.5},
    ),
    "knitting": Look(
        "stitches of four colours of wool",
        {"drawer": "grid", "drawer_options": {"cells": "40", "shape": "knit", "colours": "navy,firebrick,ivory,gold"},
         "cut_min": 0.5},
    ),
    "ink": Look(
        "black strokes on white paper, no more than needed",
        {"drawer": "strokes", "drawer_options": {"count": "96", "width": "0.012", "ink": "black"}, "sparsity": 0.02,
         "cut_min": 0.6, "jitter": 0.0},
    ),
    "crayon": Look(
        "broad coloured strokes",
        {"drawer": "strokes", "drawer_options": {"count": "128", "width": "0.04", "ground": "ivory"}, "cut_min": 0.5},
    ),
    "stained-glass": Look(
        "coloured quadrangles between dark lead",
        {"drawer": "polygons", "drawer_options": {"count": "96", "corners": "4", "radius": "0.15", "ground": "black"},
         "saturation": 0.1, "cut_min": 0.5},
    ),
    "watercolour": Look(
        "soft spots on white paper",
        {"drawer": "splats", "drawer_options": {"count": "384", "radius": "0.06"}, "smoothness": 1.0, "cut_min": 0.5},
    ),
    "sticker": Look(
        "polygons on transparent ground, no more than needed",
        {"drawer": "polygons", "drawer_options": {"count": "48", "ground": "transparent"}, "sparsity": 0.05, "cut_min": 0.6},
    ),
    "tile": Look(
        "a texture that repeats without a seam",
        {"drawer": "fourier", "drawer_options": {"decay": "1.0"}},
    ),
    "poster": Look(
        "flat areas of five colours",
        {"drawer": "wavelet", "drawer_options": {"levels": "3"}, "smoothness": 2.0, "palette_weight": 5.0,
         "palette": ("black", "white", "firebrick", "gold", "teal"), "cut_min": 0.4},
    ),
    "mask": Look(
        "latents of a VQGAN, with the halves as mirror images",
        {"symmetry": 2.0, "init_noise": "fractal", "smoothness": 0.2},
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Preset(Group):
    """Look"""

    needs = {"preset": ()}

    preset: str | None = option(
        None, "options for a look, which explicit options override; vqgan-jax presets lists them",
        choices=tuple(TABLE), identity=False,
    )  # fmt: skip


_NAMES = ("preset", "drawer", "drawer_options")  # of options that are read before the others
_TYPED = {f.name: f for group in (Preset, Drawing) for f in dataclasses.fields(group) if f.name in _NAMES}


def apply(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options, completed with those of their preset, if they name one of `TABLE`.

    Options of a drawer complete those that the user gave, unless the user chose another drawer. Raises ConfigError for a
    preset, a drawer or its options of another type.
    """
    options = {
        name: schema.parse_value(_TYPED[name], value, name) if name in _TYPED else value for name, value in options.items()
    }
    look = TABLE.get(options.get("preset"))
    if look is None:
        return options
    completed = look.options | dict(options)
    given, drawer = options.get("drawer_options") or {}, look.options.get("drawer", "vqgan")
    if "drawer_options" in look.options:
        given = parse_assignments(given) if isinstance(given, str) else given
        own = look.options["drawer_options"] if completed["drawer"] == drawer else {}
        completed["drawer_options"] = dict(own) | dict(given) or None
    return completed
