"""CLIP ViT-B/32 at its published size (arXiv 2103.00020, table 20), trained on tars of captioned images.

    train-jax --config=configs/clip/vit_b32.py --workdir=runs/vit-b32 --config.data.source='webdataset:laion/*.tar'

The recipe is open_clip's for LAION-400M: batch 32,768, 32 epochs. 151,277,313 parameters. For fewer devices keep the batch,
and set `model.micro_batch` (examples that a tower sees at a time; the loss stays exact) and `model.tile` (columns of the
logits at a time). To go on from public weights: `--config.pretrained=hf:openai/clip-vit-base-patch32`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "clip_jax.task"
    c.steps = 400_000  # of 32,768 pairs: 32 epochs of 410 million
    c.log_every = 100
    c.data = ConfigDict({"source": "webdataset:laion/*.tar", "batch_size": 32_768, "workers": 8})
    c.mesh = ConfigDict({"data": -1})

    c.model = ConfigDict({"embed_dim": 512, "activation": "gelu", "dtype": "bfloat16"})
    c.model.image = ConfigDict({"size": 224, "patch": 32, "width": 768, "depth": 12, "heads": 12})
    c.model.text = ConfigDict({"context_length": 77, "vocab_size": 49_408, "width": 512, "depth": 12, "heads": 8})
    c.model.tile = 1024
    c.tokenizer = ConfigDict({"path": "tokenizers/clip"})  # a folder with CLIP's tokenizer.json
    c.augment = ConfigDict({"scale": (0.9, 1.0)})

    c.optim = ConfigDict({"name": "adamw", "lr": 5e-4, "warmup_steps": 2000, "weight_decay": 0.2})
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.checkpoint = ConfigDict({"every": 2000, "keep_last": 2, "keep_every": 50_000})
    return c
