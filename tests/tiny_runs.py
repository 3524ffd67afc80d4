"""Configs of runs that take seconds, for the examples of docs/contributing.md and for trying things out.

    python -c "import train_jax, tests.tiny_runs; train_jax.run(tests.tiny_runs.config('clip'), 'runs/tiny')"
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

_TOWER = {"width": 16, "depth": 1, "heads": 2}
_MODELS = {
    "clip": {"embed_dim": 8, "image": {"size": 16, "patch": 8, **_TOWER}, "text": {"context_length": 10, **_TOWER}},
    "vqgan": {
        "channels": 4, "multipliers": (1,), "blocks": 1, "attention": (), "middle_attention": False, "resolution": 8,
        "groups": 2, "z_channels": 4,
    },
}  # fmt: skip
_OPTIONS = {
    "clip": {"tokenizer": {"vocab_size": 600}, "compute": {"scan": False}},
    "vqgan": {"loss": {"adversarial": "none"}},
}


def config(name: str, **options) -> ConfigDict:
    """Two updates of a tiny "clip" or "vqgan" (without a discriminator), with other options laid over it.

    The data are eight pictures, of one colour and with one caption each, which are written to `pictures`.
    """
    c = base_config(f"{name}_jax.task", model=_MODELS[name], **_OPTIONS[name])
    c.update(options)
    return c


def base_config(task: str, **options) -> ConfigDict:
    """Two updates of a task on the data of `config`, with other options laid over it."""
    Path("pictures").mkdir(exist_ok=True)
    for index, colour in enumerate(np.random.default_rng(0).integers(0, 256, (8, 3)).tolist()):
        Image.new("RGB", (16, 16), tuple(colour)).save(f"pictures/{index}.png")
        Path(f"pictures/{index}.txt").write_text(f"picture {index}", "utf-8")
    c = ConfigDict({"task": task, "steps": 2, "log_every": 1})
    c.optim = {"name": "sgd"}  # what compiles soonest
    c.data = {"source": "folder:pictures", "batch_size": 8}
    c.update(options)
    return c
