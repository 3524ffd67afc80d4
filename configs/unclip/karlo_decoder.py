"""The decoder of unCLIP at karlo's size, 0.89 billion parameters, 64 pixels; rates of arXiv 2204.06125, table 3.

    train-jax --config=configs/unclip/karlo_decoder.py --workdir=runs/karlo-decoder \
        --config.clip.path=hf:openai/clip-vit-large-patch14 --config.prior.path=runs/karlo-prior \
        --config.data.source='webdataset:cc12m/*.tar'

Channels 320 to 1280 in four levels, attention at 32 pixels and below; karlo's text dropout of 30 %, image dropout 10 %,
dropout 10 %. On eight H100, `train-jax plan --config.clip.path=clip/vit_l14` needs 17.4 GiB of each one's 79: 32 images at a
time, in eight micro-batches; at once, 256 images would need 96 GiB. Not trained here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.unclip.decoder_task"
    c.steps = 1_000_000
    c.data = ConfigDict({"source": "webdataset:cc12m/*.tar", "split": "train[1%:]", "batch_size": 2048, "workers": 8})
    c.mesh = ConfigDict({"data": -1, "fsdp": 8})
    c.clip = ConfigDict({"path": ""})
    c.prior = ConfigDict({"path": ""})
    c.model = ConfigDict({"size": 64, "channels": (320, 640, 960, 1280), "blocks": 3, "attention": (1, 2, 3)})
    c.accumulate = 8
    c.model.update({"head_dim": 64, "context_dim": 1536, "image_tokens": 4})
    c.compute = ConfigDict({"dtype": "bfloat16", "remat": "full"})
    c.dropout, c.image_dropout, c.caption_dropout = 0.1, 0.1, 0.3
    c.optim = ConfigDict({"lr": 1.2e-4, "warmup_steps": 5000, "weight_decay": 0.0, "args": {"b1": 0.9, "b2": 0.999}})
    c.ema = ConfigDict({"decay": 0.9999})
    c.checkpoint = ConfigDict({"every": 5000})
    look = {"type": "reconstruction", "split": "train[:1%]", "every": 20_000, "examples": 1024}
    c.evals = ConfigDict({"test": look})
    return c
