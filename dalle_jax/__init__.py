"""DALL-E (arXiv 2102.12092): generates images from text with a transformer over text tokens and image codes.

    dalle = dalle_jax.load("runs/dalle-shapes")
    dalle.generate(["a red circle"], n=9)      # uint8 [1, 9, H, W, 3]

`dalle_jax.task` defines the training task for `train_jax`, `dalle_jax.dalle` the loaded model.

And unCLIP (DALL-E 2, arXiv 2204.06125), of CLIP image embeddings and diffusion, in `dalle_jax.unclip`:

    unclip = dalle_jax.load_unclip("runs/unclip-decoder-shapes")
    unclip.imagine(["a red circle"], n=9)      # uint8 [1, 9, H, W, 3]
"""

import importlib

__all__ = ["Dalle", "Drawing", "LoadError", "Unclip", "load", "load_unclip", "push"]
_UNCLIP = {"Unclip": "unclip", "load_unclip": "loading"}  # name -> module


def __getattr__(name: str):
    # Imported late: `dalle-jax --help` and configs of `dalle_jax.task` need neither JAX devices nor checkpoints.
    if name in _UNCLIP:
        return getattr(importlib.import_module(f"dalle_jax.unclip.{_UNCLIP[name]}"), name)
    if name == "push":
        from train_jax.upload import push

        return push
    if name in __all__:
        from dalle_jax import dalle

        return getattr(dalle, name)
    raise AttributeError(f"module 'dalle_jax' has no attribute {name!r}")
