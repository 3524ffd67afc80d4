"""Trains VQGAN f16 with 16,384 codes at taming-transformers' published size: `f16_1024` with a larger codebook.

    train-jax --config=configs/vqgan/f16_16384.py --workdir=runs/vqgan-f16-16384 --config.perceptual.path=taming.ckpt

76,073,859 parameters in the generator; memory as for `f16_1024`; not trained here.
"""

from . import f16_1024


def get_config():
    c = f16_1024.get_config()
    c.model.quantizer.size = 16_384
    c.codebook = {"revive": 1000}
    return c
