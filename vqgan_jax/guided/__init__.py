"""Text-guided image synthesis by optimising a VQGAN's latents against CLIP similarity (VQGAN+CLIP, arXiv 2204.08583).

    painting = vqgan_jax.guided.paint(vq, clip, "a castle | sunset:0.5 | blur:-0.3", steps=300, seed=0)
    painting.images                 # uint8 [n, H, W, 3]
    grid = vqgan_jax.guided.paint_many(vq, clip, ["a star"], seeds=(0, 1), settings=[{"lr": 0.05}, {"lr": 0.1}])
    vqgan_jax.guided.form(vq, clip, "a castle")  # sliders and the picture, in a notebook
    story = vqgan_jax.guided.animate(vq, clip, "a seed ^ a tree", motion=guided.Motion(frames=60, zoom=1.02))

`options` defines all options, `prompts` the prompt grammar, `trajectory` the compiled scan.
"""

import importlib

_NAMES = {
    "painting": ("Painting", "paint", "paint_many"),
    "animation": ("Animation", "Motion", "animate"),
    "exploration": ("Exploration", "explore"),
    "notebook": ("form",),
    "options": ("Options",),
    "prompts": ("PromptError",),
}
__all__ = [
    "Animation", "Exploration", "Motion", "Options", "Painting", "PromptError", "animate", "explore", "form", "paint",
    "paint_many",
]  # fmt: skip


def __getattr__(name: str):
    # Imports lazily, so that `vqgan-jax --help` does not import JAX.
    for module, names in _NAMES.items():
        if name == module or name in names:
            imported = importlib.import_module(f"vqgan_jax.guided.{module}")
            return imported if name == module else getattr(imported, name)
    raise AttributeError(f"module 'vqgan_jax.guided' has no attribute {name!r}")
