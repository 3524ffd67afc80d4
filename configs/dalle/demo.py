"""Short preset for `make demo`: `configs/dalle/shapes.py` with fewer channels, layers, updates and scenes.

train-jax --config=configs/dalle/demo.py --workdir=runs/demo/dalle

Accuracy of one image for each of 256 prompts "a {colour} {shape}", read by the oracle (guidance 5, top-p 0.9): 68.4 % on
pairs in the training data, 48.4 % on `novel` pairs; 1.2 % on captions of two objects with sizes and a relation. On
held-out data: 2.57 bits per code (unigram baseline 6.46). With 2.2 times the operations an update and 2,000
updates (width 192): 79.3 %, 63.3 %, 2.0 % and 2.35 bits.
"""

from ml_collections import ConfigDict

from . import shapes


def get_config() -> ConfigDict:
    c = shapes.get_config()
    c.steps = 1500
    c.data.source = "shapes/32"
    c.vqgan.path = "runs/demo/vqgan"
    c.model.update({"width": 128, "depth": 4, "heads": 4})
    c.checkpoint = ConfigDict({"every": 750, "keep_last": 1})
    for evaluator in c.evals.values():
        evaluator.every = 0
    return c
