"""Short preset for `make demo`: `configs/dalle/shapes.py` with fewer layers, updates and scenes.

train-jax --config=configs/dalle/demo.py --workdir=runs/demo/dalle

On 2 CPU cores that also ran other jobs: 11 minutes, evaluation included. Accuracy of one image for each of 256 prompts
"a {colour} {shape}", read by the oracle (guidance 5, top-p 0.9): 73.0 % on pairs in the training data, 52.3 % on
`novel` pairs; 2.3 % on captions of two objects with sizes and a relation (77.0 %, 62.5 % and 0.8 % in a run with the
same likelihood: of 256 samples, a share has a standard error of 3 %). On held-out data: 2.40 bits per code (unigram
baseline 6.51), 1.84 bits per text token.
"""

from ml_collections import ConfigDict

from . import shapes


def get_config() -> ConfigDict:
    c = shapes.get_config()
    c.steps = 2000
    c.data.update({"source": "shapes/32", "leading_prob": 0.0, "leading_captions": 1})
    c.vqgan.path = "runs/demo/vqgan"
    c.model.depth = 4
    c.checkpoint = ConfigDict({"every": 1000, "keep_last": 1})
    for evaluator in c.evals.values():
        evaluator.every = 0
    return c
