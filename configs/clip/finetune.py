"""Fine-tuning of public weights. The model, tokenizer and preprocessing come from the checkpoint.

    train-jax --config=configs/clip/finetune.py --workdir=runs/tuned --config.data.source=folder:photos \
        --config.pretrained=hf:openai/clip-vit-base-patch32

`pretrained` is a path or name that `clip_jax.load` opens. A tenth of the data is held out to evaluate retrieval. The text
tower is frozen (LiT, arXiv 2111.07991), so that what it knows of other words is not lost; `--config.optim.freeze=()`
trains both. `train-jax finetune` trains by this config and tells what is gained and forgotten. On an accelerator add
`--config.compute.dtype=bfloat16`. A ResNet needs `--config.compute.micro_batch=0`, since its batch norm does not support
micro-batches.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "clip_jax.task"
    c.pretrained = "hf:openai/clip-vit-base-patch32"
    c.steps = 2000
    c.data = ConfigDict({"source": "folder:photos", "split": "train[10%:]", "batch_size": 256})
    c.compute = ConfigDict({"remat": "dots", "micro_batch": 64})
    c.contrastive = ConfigDict({"tile": 1024})
    c.augment = ConfigDict({"scale": (0.8, 1.0)})
    c.optim = ConfigDict({"lr": 1e-5, "warmup_steps": 100, "schedule": "wsd", "weight_decay": 0.1})
    c.optim.args = ConfigDict({"b2": 0.98, "eps": 1e-6})
    c.optim.freeze = ("clip/text/",)
    c.ema = ConfigDict({"decay": 0.998})
    c.checkpoint = ConfigDict({"every": 500})
    c.evals = ConfigDict()
    c.evals.retrieval = ConfigDict({"type": "retrieval", "split": "train[:10%]", "gallery": 1000, "every": 500})
    return c
