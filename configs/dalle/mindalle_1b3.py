"""minDALL-E (kakaobrain, 1.3 billion parameters): 42 blocks of width 1,536 over 64 text tokens and 256 codes.

    train-jax --config=configs/dalle/mindalle_1b3.py --workdir=runs/mindalle --config.vqgan.path=DIR \
        --config.data.source='webdataset:cc12m/*.tar'

The published model has 1,291,000,000 parameters to three digits, as has stage 2 here; this config adds a pad token
for each text position. For a host of 8 devices; not trained here. Memory: `python -m benchmarks.memory --only dalles`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.steps = 300_000
    c.data = ConfigDict({"source": "webdataset:cc12m/*.tar", "split": "train[1%:]", "batch_size": 512, "workers": 8})
    c.mesh = ConfigDict({"data": -1, "fsdp": 8})
    c.vqgan = ConfigDict({"path": ""})
    c.tokenizer = ConfigDict({"vocab_size": 16_384})
    c.model = ConfigDict({"text_length": 64, "width": 1536, "depth": 42, "heads": 24, "positions": "learned"})
    c.compute = ConfigDict({"dtype": "bfloat16", "remat": "full"})
    c.dropout = 0.0
    c.optim = ConfigDict({"lr": 1e-4, "warmup_steps": 2000, "weight_decay": 0.01, "args": {"b2": 0.96}})
    c.checkpoint = ConfigDict({"every": 5000})
    c.evals = ConfigDict({"test": {"type": "likelihood", "split": "train[:1%]", "every": 10_000}})
    return c
