"""CLIP ViT-B/32 at its published size (arXiv 2103.00020, table 20), trained on tars of captioned images.

    train-jax --config=configs/clip/vit_b32.py --workdir=runs/vit-b32 --config.data.source='webdataset:laion/*.tar'

The recipe is open_clip's for LAION-400M: batch size 32,768, 32 epochs. 151,277,313 parameters. The global batch size
does not depend on the number of devices: each device encodes at most 256 pairs at a time, which keep 17 MiB each for
the backward pass (4.2 GiB), and computes the exact loss with at most 1,024 texts at a time. Captions of LAION have about
15 of 77 tokens: `--config.compute.text_lengths=16,32,48` cuts them, with the same loss. 1 % of the data is held
out. To also measure zero-shot accuracy: `--config.evals.imagenet.type=zero_shot
--config.evals.imagenet.source=tfds:imagenet2012 --config.evals.imagenet.split=validation`.

Needs CLIP's tokenizer: `hf download openai/clip-vit-base-patch32 tokenizer.json --local-dir tokenizers/clip`. To start
from public weights, use `configs/clip/finetune.py`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "clip_jax.task"
    c.steps = 400_000  # of 32,768 pairs: 32 epochs of 410 million
    c.log_every = 100
    c.data = ConfigDict({"source": "webdataset:laion/*.tar", "split": "train[1%:]", "batch_size": 32_768, "workers": 8})
    c.mesh = ConfigDict({"data": -1})

    c.model = ConfigDict({"embed_dim": 512, "activation": "gelu"})
    c.model.image = ConfigDict({"size": 224, "patch": 32, "width": 768, "depth": 12, "heads": 12})
    c.model.text = ConfigDict({"context_length": 77, "vocab_size": 49_408, "width": 512, "depth": 12, "heads": 8})
    c.compute = ConfigDict({"dtype": "bfloat16", "remat": "dots", "micro_batch": 256})
    c.contrastive = ConfigDict({"tile": 1024})
    c.tokenizer = ConfigDict({"path": "tokenizers/clip"})  # a folder with CLIP's tokenizer.json
    c.augment = ConfigDict({"scale": (0.9, 1.0)})

    c.optim = ConfigDict({"name": "adamw", "lr": 5e-4, "warmup_steps": 2000, "weight_decay": 0.2})
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.checkpoint = ConfigDict({"every": 2000, "keep_last": 2, "keep_every": 50_000})
    c.evals = ConfigDict()
    c.evals.retrieval = ConfigDict({"type": "retrieval", "split": "train[:1%]", "gallery": 5000, "every": 10_000})
    return c
