"""Trains a prior on from a checkpoint, with its classes and its VQGAN.

    train-jax --config=configs/vqgan/prior_finetune.py --workdir=runs/tuned --config.data.source=folder:photos \
        --config.pretrained=transformer.ckpt

`pretrained` is anything that `vqgan_jax.load_prior` opens: a run, taming's second stages, LlamaGen. `vqgan.path` is only
stated for weights without a VQGAN.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "vqgan_jax.prior.task"
    c.pretrained = "transformer.ckpt"
    c.steps = 20_000
    c.data = ConfigDict({"source": "folder:photos", "split": "train[2%:]", "batch_size": 64})
    c.dropout = 0.0
    c.condition_dropout = 0.1
    c.optim = ConfigDict({"name": "adamw", "lr": 1e-5, "schedule": "wsd", "warmup_steps": 500})
    c.ema = ConfigDict({"decay": 0.999})
    c.checkpoint = ConfigDict({"every": 1000})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "likelihood", "split": "train[:2%]", "every": 1000})
    return c
