"""Fine-tunes public weights: the model, its tokenizer and its preprocessing are the checkpoint's.

    train-jax --config=configs/clip/finetune.py --workdir=runs/tuned --config.data.source=folder:photos \
        --config.pretrained=hf:openai/clip-vit-base-patch32

`pretrained` is anything that `clip_jax.load` opens. A tenth of the data is held out, and retrieval is measured on it. Freeze
a tower with `--config.optim.freeze=clip/vision/`; on an accelerator add `--config.compute.dtype=bfloat16`; a ResNet, whose
batch norm forbids micro-batches, needs `--config.compute.micro_batch=0`.
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
    c.optim = ConfigDict({"lr": 1e-5, "warmup_steps": 100, "weight_decay": 0.1, "args": {"b2": 0.98, "eps": 1e-6}})
    c.checkpoint = ConfigDict({"every": 500})
    c.evals = ConfigDict()
    c.evals.retrieval = ConfigDict({"type": "retrieval", "split": "train[:10%]", "gallery": 1000, "every": 500})
    return c
