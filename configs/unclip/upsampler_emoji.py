"""The upsampler of unCLIP (DALL-E 2) on emoji, from 64 to 128 pixels, trained on crops of 32 from drawings at 128.

    train-jax prepare emoji/128/held_out=none
    train-jax --config=configs/unclip/upsampler_emoji.py --workdir=runs/unclip-upsampler-emoji

Not trained yet.
"""

from ml_collections import ConfigDict

SOURCE = "emoji/128/held_out=none"


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.unclip.upsampler_task"
    c.steps = 5000
    c.log_every = 100
    c.data = ConfigDict({"source": SOURCE, "batch_size": 32})
    c.model = ConfigDict({"size": 32, "channels": (16, 32, 64), "blocks": 1, "groups": 8})
    c.factor = 2
    c.augment = ConfigDict({"scale": (1 / 16, 1 / 16), "flip": True})
    c.optim = ConfigDict({"name": "adamw", "lr": 1e-3, "warmup_steps": 100, "weight_decay": 0.01, "args": {"b2": 0.99}})
    c.ema = ConfigDict({"decay": 0.999})
    c.checkpoint = ConfigDict({"every": 2500, "keep_last": 1})
    c.evals = ConfigDict({"pairs": {"type": "upsampling", "split": "pairs", "every": 2500}})
    return c
