"""CLIP ViT-B/16 at its published size (arXiv 2103.00020, table 20): `configs/clip/vit_b32.py` with patches of 16 pixels.

    train-jax --config=configs/clip/vit_b16.py --workdir=runs/vit-b16 --config.data.source='webdataset:laion/*.tar'

149,620,737 parameters. A pair keeps 42 MiB for the backward pass; a device encodes at most 128 at a time (5.2 GiB).
"""

from ml_collections import ConfigDict

from . import vit_b32


def get_config() -> ConfigDict:
    c = vit_b32.get_config()
    c.model.image.patch = 16
    c.compute.micro_batch = 128
    return c
