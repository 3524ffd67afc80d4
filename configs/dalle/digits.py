"""DALL·E on scanned digits: captions such as "the digit three" and the codes of `configs/vqgan/digits.py`.

train-jax --config=configs/dalle/digits.py --workdir=runs/dalle-digits --config.vqgan.path=runs/vqgan-digits

No figures yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.steps = 1500
    c.log_every = 100
    c.data = ConfigDict({"source": "digits", "batch_size": 32})
    c.vqgan = ConfigDict({"path": "runs/vqgan-digits"})
    c.tokenizer = ConfigDict({"vocab_size": 600})
    c.model = ConfigDict({"text_length": 12, "width": 192, "depth": 4, "heads": 6, "dropout": 0.2, "scan": False})
    c.optim = ConfigDict({"lr": 1e-3, "warmup_steps": 50, "weight_decay": 0.05, "args": {"b2": 0.98}})
    c.ema = ConfigDict({"decay": 0.995})
    c.checkpoint = ConfigDict({"every": 500, "keep_last": 1})
    draw = {"template": "the digit {}", "prompts": 256, "top_p": 0.95, "guidance": 2.0}
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "likelihood", "split": "test", "every": 250})
    c.evals.drawing = ConfigDict({"type": "drawing", "split": "test", "every": 500, **draw})
    return c
