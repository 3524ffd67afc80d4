"""The short preset of `make demo`: `configs/dalle/shapes.py` with fewer updates.

train-jax --config=configs/dalle/demo.py --workdir=runs/demo/dalle

No figures yet.
"""

from ml_collections import ConfigDict

from configs.dalle import shapes


def get_config() -> ConfigDict:
    c = shapes.get_config()
    c.steps = 2000
    c.model.dropout = 0.0
    c.checkpoint = ConfigDict({"every": 1000, "keep_last": 1})
    for evaluator in c.evals.values():
        evaluator.every = 0
    return c
