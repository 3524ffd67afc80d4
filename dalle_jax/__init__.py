"""DALL-E: images from text, by one autoregressive sequence of text tokens and image codes.

    dalle = dalle_jax.load("runs/dalle-shapes")
    dalle.generate(["a red circle"], n=9)      # uint8 [1, 9, H, W, 3]

`dalle_jax.task` is the trainer's interface, `dalle_jax.dalle` the user's.
"""

__all__ = ["Dalle", "Drawing", "LoadError", "load"]


def __getattr__(name: str):
    # Late: `dalle-jax --help` and a config that names `dalle_jax.task` need neither JAX devices nor checkpoints.
    if name in __all__:
        from dalle_jax import dalle

        return getattr(dalle, name)
    raise AttributeError(f"module 'dalle_jax' has no attribute {name!r}")
