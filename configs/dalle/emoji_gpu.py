"""`configs/dalle/emoji.py` for one accelerator: codes of 128-pixel drawings and a transformer of 12 x 768, in bfloat16.

    train-jax prepare emoji/128/held_out=none
    train-jax --config=configs/dalle/emoji_gpu.py --workdir=runs/dalle-emoji --config.vqgan.path=runs/vqgan-emoji

Planned for one H100 by `train-jax plan --config=dalle/emoji_gpu --config.vqgan.path=vqgan/emoji_gpu --target=h100:1`:
peak 52.6 of 79 GiB, 39.9 TFLOP an update. Not trained yet.
"""

from . import emoji

DRAWINGS = "emoji/128/held_out=none"


def get_config():
    c = emoji.get_config(DRAWINGS)
    c.steps = 40_000
    # Half of the drawings are other skin tones of the same things; those without make two thirds of the mixture.
    c.data.source = f"2 {DRAWINGS} | {DRAWINGS} where tone="
    c.data.update({"batch_size": 256, "workers": 8})
    c.model.update({"width": 768, "depth": 12, "heads": 12})
    c.compute = {"dtype": "bfloat16", "scan": True}
    c.optim.update({"lr": 2e-3, "warmup_steps": 1000})
    c.ema.decay = 0.999
    c.checkpoint.every = 5000
    c.evals.pairs.every = 5000
    c.evals.drawn.every = 20_000
    return c
