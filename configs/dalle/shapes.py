"""DALL·E on rendered scenes: captions and the codes of `configs/vqgan/shapes.py` as one stream.

train-jax --config=configs/dalle/shapes.py --workdir=runs/dalle-shapes --config.vqgan.path=runs/vqgan-shapes

No figures yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.steps = 4000
    c.log_every = 100
    c.data = ConfigDict({"source": "shapes/32", "batch_size": 32})
    c.vqgan = ConfigDict({"path": "runs/vqgan-shapes"})
    c.tokenizer = ConfigDict({"vocab_size": 640})
    c.model = ConfigDict({"text_length": 20, "width": 192, "depth": 4, "heads": 6, "dropout": 0.0, "scan": False})
    c.model.activation = "gelu_tanh"
    c.optim = ConfigDict({"lr": 1.5e-3, "warmup_steps": 100, "weight_decay": 0.05, "args": {"b2": 0.98}})
    c.ema = ConfigDict({"decay": 0.99})
    c.checkpoint = ConfigDict({"every": 1000, "keep_last": 1})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "likelihood", "split": "test", "every": 500})
    c.evals.seen = ConfigDict({"type": "drawing", "split": "test", "every": 500, "prompts": 64})
    c.evals.novel = ConfigDict({"type": "drawing", "split": "novel", "every": 500, "prompts": 64})
    return c
