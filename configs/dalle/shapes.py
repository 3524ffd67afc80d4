"""DALL-E on rendered scenes: captions, and the codes of the demo's VQGAN, as one stream.

train-jax --config=configs/dalle/shapes.py --workdir=runs/dalle-shapes --config.vqgan.path=runs/demo/vqgan

On 2 CPU cores that had much other work: 44 minutes (alone: 4.7 updates a second, 21). `python -m benchmarks.drawing`, 256
prompts "a {colour} {shape}", one drawing each, read by the oracle: right 92.2 % on pairs that training shows, 81.6 % on
`novel` ones; the best of 8 by the demo's CLIP 96.1 % and 89.8 %. Captions of two objects, their sizes and their relation:
3.9 %. Held out: 2.30 bits a code (6.65 by frequency alone), 1.82 bits a text token.
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
    # Muon needs a third of AdamW's updates here. Its updates are brought to the size of Adam's, which has all but kernels.
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
