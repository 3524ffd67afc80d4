"""CLIP ViT-L/14 at its published size (arXiv 2103.00020, table 20).

    train-jax --config=configs/clip/vit_l14.py --workdir=runs/vit-l14 --config.data.source='webdataset:laion/*.tar'

427,616,513 parameters. A pair keeps 17 MiB for the backward pass; a device encodes at most 128 at a time (2.1 GiB).
`train-jax plan` needs 12.4 GiB of a v5e's 15.75 on a slice of 16. `--config.mesh.fsdp=8` shards parameters over eight
devices: 6.3 GiB, but all are gathered for every 128 pairs, and an update takes 1.5 times as long by the compiler's estimate.
"""

from ml_collections import ConfigDict

from . import vit_b32


def get_config() -> ConfigDict:
    c = vit_b32.get_config()
    c.model.embed_dim = 768
    c.model.image = ConfigDict({"size": 224, "patch": 14, "width": 1024, "depth": 24, "heads": 16})
    c.model.text.update({"width": 768, "heads": 12})
    c.compute.update({"micro_batch": 128, "remat": "full"})
    return c
