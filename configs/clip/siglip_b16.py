"""SigLIP B/16 at 224 pixels at its published size (arXiv 2303.15343): sigmoid loss, attention pooling, bidirectional text.

    train-jax --config=configs/clip/siglip_b16.py --workdir=runs/siglip-b16 --config.data.source='webdataset:laion/*.tar'

203,155,970 parameters. A pair keeps 45 MiB for the backward pass; a device encodes at most 128 at a time (5.6 GiB).
Weight decay applies only to kernels. At the peak learning rate of 1e-3 it is 1e-4 per update, as `wd = 1e-4` in
big_vision, which does not multiply it by the learning rate.

Needs SigLIP's tokenizer: `hf download google/siglip-base-patch16-224 spiece.model --local-dir tokenizers/siglip`.
"""

from ml_collections import ConfigDict

from . import vit_b32


def get_config() -> ConfigDict:
    c = vit_b32.get_config()
    c.model = ConfigDict({"embed_dim": 768, "activation": "gelu_tanh", "eps": 1e-6})
    c.model.image = ConfigDict({"size": 224, "patch": 16, "width": 768, "depth": 12, "heads": 12})
    c.model.image.update({"stem_bias": True, "pool": "map", "pre_norm": False, "proj": False})
    c.model.text = ConfigDict({"context_length": 64, "vocab_size": 32_000, "width": 768, "depth": 12, "heads": 12})
    c.model.text.update({"causal": False, "pool": "last", "proj_bias": True})
    c.model.update({"loss": "sigmoid", "init_logit_scale": 2.302585})
    c.compute.micro_batch = 128
    c.tokenizer.path = "tokenizers/siglip"  # a folder with SigLIP's tokenizer.json or spiece.model
    half = (0.5, 0.5, 0.5)
    c.preprocess = ConfigDict({"mode": "squash", "mean": half, "std": half})
    c.optim.update({"lr": 1e-3, "weight_decay": 0.1, "no_decay": (r"(^|/)(?!kernel$)[^/]+$",)})
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.95})
    return c
