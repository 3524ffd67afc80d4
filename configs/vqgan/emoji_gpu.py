"""`configs/vqgan/emoji.py` for one accelerator: 128 pixels, 16 x 16 codes, four times the channels, in bfloat16.

    train-jax prepare emoji/128/held_out=none
    train-jax --config=configs/vqgan/emoji_gpu.py --workdir=runs/vqgan-emoji

Planned for one H100 by `train-jax plan --config=vqgan/emoji_gpu --target=h100:1`: peak 5.9 of 79 GiB. Not trained yet.
"""

from . import emoji


def get_config():
    c = emoji.get_config()
    c.steps = 60_000
    c.data.update({"source": "emoji/128/held_out=none", "batch_size": 32, "workers": 8})
    c.model.update({"channels": 64, "blocks": 2, "resolution": 128, "attention": (16,), "z_channels": 256, "groups": 32})
    c.discriminator = {"channels": 64, "layers": 3}
    c.loss.update({"disc_start": 20_000, "disc_warmup": 500, "disc_ramp": 2000})
    c.compute = {"dtype": "bfloat16"}
    c.optim.update({"lr": 3e-4, "warmup_steps": 500})
    c.ema.decay = 0.999
    c.checkpoint.every = 5000
    c.evals.pairs.every = 10_000
    return c
