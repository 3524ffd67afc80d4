"""Trains VQGAN f16 with 1,024 codes on ImageNet (arXiv 2012.09841) at the published size: 72,141,699 parameters.

    train-jax --config=configs/vqgan/f16_1024.py --workdir=runs/vqgan-f16 --config.data.source='webdataset:imagenet/*.tar' \
        --config.perceptual.path=taming.ckpt

Taming's recipe: learning rate 4.5e-6 per example of the batch, Adam with b1 0.5, LPIPS, a discriminator after 24 million
examples. The batch of 256 can be split over up to 256 devices. 12 images per device need 25 GiB by XLA's memory plan for a
CPU, which stores bfloat16 products in float32 (`python -m benchmarks.memory --only vqgans`); on few devices use
`--config.accumulate`. 1 % of the data is held out. Not trained here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "vqgan_jax.task"
    c.steps = 225_000
    c.log_every = 100
    c.data = ConfigDict({"source": "webdataset:imagenet/*.tar", "split": "train[1%:]", "batch_size": 256, "workers": 8})
    c.mesh = ConfigDict({"data": -1})

    c.model = ConfigDict({"channels": 128, "multipliers": (1, 1, 2, 2, 4), "blocks": 2, "attention": (16,)})
    c.model.update({"resolution": 256, "z_channels": 256})
    c.compute = ConfigDict({"dtype": "bfloat16"})
    c.model.quantizer = ConfigDict({"type": "nearest", "size": 1024, "dim": 256, "beta": 0.25})
    c.discriminator = ConfigDict({"channels": 64, "layers": 3, "norm": "group"})
    c.perceptual = ConfigDict({"type": "lpips", "path": "", "weight": 1.0})
    c.loss = ConfigDict({"pixels": "l1", "adversarial": "hinge", "weight": 0.8, "disc_start": 93_751})
    c.augment = ConfigDict({"scale": (0.8, 1.0), "flip": True})

    c.optim = ConfigDict({"name": "adam", "lr": 4.5e-6 * 256, "schedule": "constant", "warmup_steps": 1000, "clip": 0.0})
    c.optim.args = ConfigDict({"b1": 0.5, "b2": 0.9})
    c.ema = ConfigDict({"decay": 0.9999, "players": ("generator",)})
    c.checkpoint = ConfigDict({"every": 5000, "keep_last": 2, "keep_every": 50_000})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "reconstruction", "split": "train[:1%]", "most": 5000, "every": 5000})
    return c
