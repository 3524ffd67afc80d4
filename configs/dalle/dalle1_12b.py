"""DALL-E 1 at its published size (arXiv 2102.12092, section 2.2, appendix B): 12 billion parameters, 64 blocks of 62 heads.

    train-jax --config=configs/dalle/dalle1_12b.py --workdir=runs/dalle1 --config.vqgan.path=DIR \
        --config.data.source='webdataset:cc12m/*.tar'

256 text tokens and 32 x 32 codes (codebook size 8,192) in a joint vocabulary; row and column attention, and 11 x 11
convolutional attention in the last block; loss weights 1/8 and 7/8; BPE dropout of 10 %. For a pod; not trained here.
On 8 devices an update needs 40 GiB per device with `--config.accumulate=64`: `python -m benchmarks.memory --only
dalles`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.steps = 430_000
    c.data = ConfigDict({"source": "webdataset:cc12m/*.tar", "split": "train[1%:]", "batch_size": 1024, "workers": 8})
    c.mesh = ConfigDict({"data": -1, "fsdp": 8})
    c.vqgan = ConfigDict({"path": ""})
    c.tokenizer = ConfigDict({"vocab_size": 16_384, "dropout": 0.1})
    c.model = ConfigDict({"text_length": 256, "width": 3968, "depth": 64, "heads": 62})
    c.model.update({"vocabulary": "joint", "attention": ("row", "column", "row", "row"), "last_attention": "conv"})
    c.model.conv_window = 11
    c.compute = ConfigDict({"dtype": "bfloat16", "remat": "full"})
    c.dropout = 0.0
    c.loss = ConfigDict({"condition": 1 / 8, "codes": 7 / 8})
    c.condition_dropout = 0.0
    c.optim = ConfigDict({"lr": 4.5e-4, "warmup_steps": 5000, "weight_decay": 4.5e-2})
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.96, "eps": 1e-8})
    c.optim.clip = 4.0
    c.ema = ConfigDict({"decay": 0.999})
    c.checkpoint = ConfigDict({"every": 2500})
    c.evals = ConfigDict({"test": {"type": "likelihood", "split": "train[:1%]", "every": 10_000}})
    return c
