"""Drawers: what a painting optimises, and how a picture is rendered from it. `TABLE` names all drawers.

A drawer is a class (`drawer.Drawer`) whose fields are its options. To add one, write a module with a class and name it in
`TABLE`, by its whole path if it lies elsewhere. This package is imported without JAX; a drawer's module is imported when the
drawer is named.
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
    "unclip": "dalle_jax.unclip.drawer.ImageEmbedding",
}


def find(name: str) -> type:
    """Returns the class of a drawer by its name in `TABLE`."""
    module, _, class_name = TABLE[name].rpartition(".")
    return getattr(importlib.import_module(module if "." in module else f"{__name__}.{module}"), class_name)
