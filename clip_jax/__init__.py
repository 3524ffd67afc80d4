"""CLIP: pictures and sentences in one space; trained by `train_jax`, used through a few verbs.

    clip = clip_jax.load("runs/clip-shapes")
    clip.classify(["photo.jpg"], ["a cat", "a dog"])      # probabilities [n_images, n_labels]

`clip_jax.task` is what the trainer sees, `clip_jax.clip` what users hold, `clip_jax.search` the index of a folder.
"""

__all__ = ["Clip", "LoadError", "load", "save_hf"]


def __getattr__(name: str):
    # Late: `clip-jax --help` and a config that names `clip_jax.task` need neither JAX devices nor checkpoints.
    if name in __all__:
        from clip_jax import clip

        return getattr(clip, name)
    raise AttributeError(f"module 'clip_jax' has no attribute {name!r}")
