"""Drawers: what a painting optimises, and how a picture is rendered from it. `TABLE` names all drawers.

A drawer is a class (`drawer.Drawer`) whose fields are its options. To add one, write a module with a class and name it in
`TABLE`. This package is imported without JAX; a drawer's module is imported when the drawer is named.
"""

import importlib

TABLE = {
    "vqgan": "vqgan.VqganLatents",
    "pixel": "pixel.Pixels",
    "grid": "grid.Grid",
    "fourier": "fourier.Fourier",
    "wavelet": "wavelet.Wavelet",
    "strokes": "strokes.Strokes",
    "polygons": "polygons.Polygons",
    "splats": "splats.Splats",
    "implicit": "implicit.Implicit",
    "layers": "layers.Layers",
}


def find(name: str) -> type:
    """Returns the class of a drawer by its name in `TABLE`."""
    module, _, class_name = TABLE[name].partition(".")
    return getattr(importlib.import_module(f"vqgan_jax.guided.drawers.{module}"), class_name)
