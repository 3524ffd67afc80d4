"""CLIP (arXiv 2103.00020): embeds images and texts in one space, for classification and search.

    clip = clip_jax.load("runs/clip-shapes")
    clip.classify(["photo.jpg"], ["a cat", "a dog"])      # probabilities [n_images, n_labels]

`clip_jax.task` defines the training task for `train_jax`, `clip_jax.clip` the loaded model, and `clip_jax.search` image
search.
"""

__all__ = ["Clip", "LoadError", "load", "push", "save", "save_hf", "save_open_clip", "to_bytes"]


def __getattr__(name: str):
    # Imported late: `clip-jax --help` and a config that names `clip_jax.task` need neither JAX devices nor checkpoints.
    if name in __all__:
        from clip_jax import clip
        from train_jax import installation

        installation.check_import_name()
        return getattr(clip, name)
    raise AttributeError(f"module 'clip_jax' has no attribute {name!r}")
