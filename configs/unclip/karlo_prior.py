"""The diffusion prior of unCLIP at karlo's size, 1.02 billion parameters; rates of arXiv 2204.06125, table 3.

    train-jax --config=configs/unclip/karlo_prior.py --workdir=runs/karlo-prior \
        --config.clip.path=hf:openai/clip-vit-large-patch14 --config.data.source='webdataset:cc12m/*.tar'

20 blocks of width 2048 with 32 heads on 77 text tokens and four more; karlo's text dropout of 20 % (karlo's model card
has no batch size). On eight H100, `train-jax plan --config.clip.path=clip/vit_l14` needs 39.0 GiB of each one's 79. Not
trained here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.unclip.prior_task"
    c.steps = 600_000
    c.data = ConfigDict({"source": "webdataset:cc12m/*.tar", "split": "train[1%:]", "batch_size": 4096, "workers": 8})
    c.mesh = ConfigDict({"data": -1, "fsdp": 8})
    c.clip = ConfigDict({"path": ""})
    c.model = ConfigDict({"width": 2048, "depth": 20, "heads": 32})
    c.compute = ConfigDict({"dtype": "bfloat16", "remat": "dots"})
    c.condition_dropout = 0.2
    c.optim = ConfigDict({"lr": 1.1e-4, "warmup_steps": 5000, "weight_decay": 6e-2, "args": {"b1": 0.9, "b2": 0.96}})
    c.optim.args.eps = 1e-6
    c.ema = ConfigDict({"decay": 0.9999})
    c.checkpoint = ConfigDict({"every": 5000})
    look = {"type": "embeddings", "split": "train[:1%]", "every": 20_000, "examples": 4096}
    c.evals = ConfigDict({"test": look, "guided": {**look, "guidance": 4.0}})
    return c
