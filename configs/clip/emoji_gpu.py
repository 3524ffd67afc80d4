"""`configs/clip/emoji.py` for one accelerator: a ViT of 12 x 384 with patches of 8, and more updates, in bfloat16.

    train-jax prepare emoji/64/held_out=twemoji/languages=en+el
    train-jax --config=configs/clip/emoji_gpu.py --workdir=runs/clip-emoji

Planned for one H100 by `train-jax plan --config=clip/emoji_gpu --target=h100:1`: peak 19.5 of 79 GiB, 7.6 TFLOP an update.
Not trained yet.
"""

from . import emoji


def get_config():
    c = emoji.get_config()
    c.steps = 12_000
    c.data.update({"batch_size": 1024, "workers": 8})
    c.model.embed_dim = 256
    c.model.image.update({"patch": 8, "width": 384, "depth": 12, "heads": 6})
    c.model.text.update({"width": 256, "depth": 6, "heads": 4})
    c.compute = {"dtype": "bfloat16"}
    c.patch_dropout = 0.25
    c.optim.update({"lr": 2e-3, "warmup_steps": 500})
    c.checkpoint.every = 2000
    for evaluator in c.evals.values():
        evaluator.every = 4000
    return c
