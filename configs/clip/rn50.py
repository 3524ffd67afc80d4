"""CLIP RN50 at its published size (arXiv 2103.00020, table 19): OpenAI's ResNet with attention pooling.

    train-jax --config=configs/clip/rn50.py --workdir=runs/rn50 --config.data.source='webdataset:laion/*.tar'

102,007,137 parameters. Batch norm uses the statistics of the global batch and does not support micro-batches: a pair
keeps 59 MiB for the backward pass, so the published batch size needs a pod. On fewer devices, lower `data.batch_size`.
"""

from ml_collections import ConfigDict

from . import vit_b32


def get_config() -> ConfigDict:
    c = vit_b32.get_config()
    c.model.embed_dim = 1024
    c.model.image = ConfigDict({"tower": "resnet", "size": 224, "width": 64, "layers": (3, 4, 6, 3), "heads": 32})
    c.compute.micro_batch = 0
    return c
