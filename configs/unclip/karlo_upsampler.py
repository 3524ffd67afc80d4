"""The upsampler of unCLIP from 64 to 256 pixels at karlo's size, 0.69 billion parameters; arXiv 2204.06125, table 3.

    train-jax --config=configs/unclip/karlo_upsampler.py --workdir=runs/karlo-upsampler \
        --config.data.source='webdataset:cc12m/*.tar'

A U-Net without attention, trained on crops of a quarter of the side (section 2.1). karlo's own has a second network for the
last step, fine-tuned with a GAN loss; this config trains the first. Planned for eight H100 (`train-jax plan
--target=h100:8`): 14 GiB each, with 4 micro-batches of 32 images on each device; not trained here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.unclip.upsampler_task"
    c.steps = 1_000_000
    c.data = ConfigDict({"source": "webdataset:cc12m/*.tar", "split": "train[1%:]", "batch_size": 1024, "workers": 8})
    c.mesh = ConfigDict({"data": -1, "fsdp": 8})
    c.model = ConfigDict({"size": 64, "channels": (320, 640, 960, 1280), "blocks": 3})
    c.accumulate = 4
    c.factor = 4
    c.augment = ConfigDict({"scale": (1 / 16, 1 / 16)})
    c.compute = ConfigDict({"dtype": "bfloat16", "remat": "full"})
    c.optim = ConfigDict({"lr": 1.2e-4, "warmup_steps": 5000, "weight_decay": 0.0, "args": {"b1": 0.9, "b2": 0.999}})
    c.ema = ConfigDict({"decay": 0.9999})
    c.checkpoint = ConfigDict({"every": 5000})
    c.evals = ConfigDict({"test": {"type": "upsampling", "split": "train[:1%]", "every": 20_000, "examples": 512}})
    return c
