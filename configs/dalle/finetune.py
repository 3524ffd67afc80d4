"""Trains a DALL-E on from a checkpoint, with its tokenizer and its VQGAN.

    train-jax --config=configs/dalle/finetune.py --workdir=runs/tuned --config.data.source=webdataset:photos \
        --config.pretrained=hf:dalle-mini/dalle-mini --config.vqgan.path=hf:dalle-mini/vqgan_imagenet_f16_16384

`pretrained` is anything that `dalle_jax.load` opens: a run, minDALL-E, dalle-mini, ruDALL-E. `vqgan.path` is only stated for
weights without a VQGAN. With `condition_dropout`, a model that always saw the caption learns what guidance needs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.pretrained = "hf:dalle-mini/dalle-mini"
    c.steps = 20_000
    c.data = ConfigDict({"source": "webdataset:photos", "split": "train[2%:]", "batch_size": 64})
    c.dropout = 0.0
    c.condition_dropout = 0.1
    c.optim = ConfigDict({"name": "adamw", "lr": 1e-5, "schedule": "wsd", "warmup_steps": 500})
    c.ema = ConfigDict({"decay": 0.999})
    c.checkpoint = ConfigDict({"every": 1000})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "likelihood", "split": "train[:2%]", "every": 1000})
    return c
