"""VQGAN: encodes images to codes, decodes codes to images, and samples codes from priors.

    vq = vqgan_jax.load("runs/vqgan-shapes")
    codes = vq.encode(images)        # int32 [n, h, w]
    vq.decode(codes)                 # float32 [n, H, W, 3] in [0, 1]

    prior = vqgan_jax.load_prior("runs/prior-digits")
    prior.generate([3], n=16)        # uint8 [1, 16, H, W, 3]

Modules: `vqgan_jax.task` and `vqgan_jax.prior.task` are used by the trainer, `vqgan_jax.vqgan` and
`vqgan_jax.prior.prior` contain the user's API.
"""

__all__ = ["LoadError", "Prior", "Vqgan", "load", "load_prior", "push", "save", "save_diffusers", "save_taming"]


def __getattr__(name: str):
    # Imported lazily: `vqgan-jax --help` and configs that name `vqgan_jax.task` need neither JAX devices nor checkpoints.
    if name in ("Prior", "load_prior"):
        from vqgan_jax.prior import prior

        return getattr(prior, {"load_prior": "load"}.get(name, name))
    if name in __all__:
        from vqgan_jax import vqgan

        return getattr(vqgan, name)
    raise AttributeError(f"module 'vqgan_jax' has no attribute {name!r}")
