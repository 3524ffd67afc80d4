"""Trains VQGAN f8 with 8,192 codes and Gumbel-softmax, taming-transformers' first stage for DALL-E on OpenImages.

    train-jax --config=configs/vqgan/f8_gumbel.py --workdir=runs/vqgan-f8 --config.perceptual.path=taming.ckpt

68,995,971 parameters in the generator; 12 images per device need 30 GiB, measured as in `f16_1024`; not
trained here.
"""

from . import f16_1024


def get_config():
    c = f16_1024.get_config()
    c.model.update({"multipliers": (1, 1, 2, 4), "attention": (32,)})
    c.model.quantizer.update({"type": "gumbel", "size": 8192, "dim": 256})
    with c.unlocked():
        c.model.quantizer.update({"kl_weight": 5e-4, "temperature": (1.0, 1 / 16)})
    return c
