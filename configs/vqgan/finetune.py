"""Finetunes a VQGAN: the model is the checkpoint's, and so is the discriminator if the checkpoint holds one.

    train-jax --config=configs/vqgan/finetune.py --workdir=runs/tuned --config.data.source=folder:photos \
        --config.pretrained=taming.ckpt --config.perceptual.path=taming.ckpt

`pretrained` is anything that `vqgan_jax.load` opens; taming's checkpoints also hold LPIPS (without one:
`--config.perceptual.type=none`). A tenth of the data is held out, and reconstructions measured there.
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
    c.optim = ConfigDict({"name": "adam", "lr": 4.5e-6 * 32, "schedule": "constant", "warmup_steps": 500, "clip": 0.0})
    c.optim.args = ConfigDict({"b1": 0.5, "b2": 0.9})
    c.ema = ConfigDict({"decay": 0.999, "players": ("generator",)})
    c.checkpoint = ConfigDict({"every": 1000})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "reconstruction", "split": "train[:10%]", "most": 1000, "every": 1000})
    return c
