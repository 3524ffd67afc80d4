"""Finetunes a VQGAN from a checkpoint, with its discriminator if the checkpoint contains a discriminator.

    train-jax --config=configs/vqgan/finetune.py --workdir=runs/tuned --config.data.source=folder:photos \
        --config.pretrained=taming.ckpt --config.perceptual.path=taming.ckpt

`pretrained` is anything that `vqgan_jax.load` opens. Taming's checkpoints also contain LPIPS (to train without LPIPS:
`--config.perceptual.type=none`). 10 % of the data is held out for evaluation.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "vqgan_jax.task"
    c.pretrained = "taming.ckpt"
    c.steps = 10_000
    c.data = ConfigDict({"source": "folder:photos", "split": "train[10%:]", "batch_size": 32})
    c.perceptual = ConfigDict({"type": "lpips", "path": "taming.ckpt"})
    c.augment = ConfigDict({"scale": (0.8, 1.0), "flip": True})
    c.optim = ConfigDict({"name": "adam", "lr": 4.5e-6 * 32, "schedule": "wsd", "warmup_steps": 500, "clip": 0.0})
    c.optim.args = ConfigDict({"b1": 0.5, "b2": 0.9})
    c.ema = ConfigDict({"decay": 0.999, "players": ("generator",)})
    c.checkpoint = ConfigDict({"every": 1000})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "reconstruction", "split": "train[:10%]", "most": 1000, "every": 1000})
    return c
