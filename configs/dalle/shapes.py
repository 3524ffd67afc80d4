"""DALL-E on captions of rendered scenes and the codes of the demo's VQGAN.

train-jax --config=configs/dalle/shapes.py --workdir=runs/dalle-shapes --config.vqgan.path=runs/demo/vqgan

On 2 CPU cores that also ran other jobs: 44 minutes (alone: 21 minutes, 4.7 updates per second). Accuracy of one image
for each of 256 prompts "a {colour} {shape}", read by the oracle (`python -m benchmarks.drawing`): 92.2 % on pairs in
the training data, 81.6 % on `novel` pairs; for the best of 8 by the demo's CLIP: 96.1 % and 89.8 %. Captions of two
objects with sizes and a relation: 3.9 %. On held-out data: 2.30 bits per code (unigram baseline 6.65), 1.82 per text
token.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.steps = 6000
    c.log_every = 100
    c.data = ConfigDict({"source": "shapes/32", "batch_size": 32})
    c.vqgan = ConfigDict({"path": "runs/demo/vqgan"})
    c.tokenizer = ConfigDict({"vocab_size": 640})
    c.model = ConfigDict({"text_length": 20, "width": 192, "depth": 4, "heads": 6})
    c.compute = ConfigDict({"scan": False})
    c.dropout = 0.1
    c.model.activation = "gelu_tanh"
    # Muon needs a third of AdamW's updates. It updates only kernels, scaled to the RMS of Adam, which updates the rest.
    c.optim = ConfigDict({"name": "contrib.muon", "lr": 3e-3, "warmup_steps": 100, "weight_decay": 0.05})
    c.optim.args = ConfigDict({"consistent_rms": 0.2, "adam_b2": 0.98, "eps": 1e-7})
    c.ema = ConfigDict({"decay": 0.99})
    c.checkpoint = ConfigDict({"every": 1500, "keep_last": 1})
    draw = {"type": "drawing", "every": 1500, "prompts": 256, "top_p": 0.9, "guidance": 5.0}
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "likelihood", "split": "test", "every": 1500})
    c.evals.seen = ConfigDict({**draw, "split": "test"})
    c.evals.novel = ConfigDict({**draw, "split": "novel"})
    c.evals.two = ConfigDict({**draw, "split": "test", "about": "pairs"})
    return c
