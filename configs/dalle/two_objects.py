"""What each change does for scenes of two objects: a sweep of `configs/dalle/shapes.py`, in half of its updates.

    train-jax prepare shapes/32/train=100000
    train-jax sweep --config=configs/dalle/two_objects.py --workdir=runs/two-objects
    train-jax runs runs/two-objects --metric two/correct

Needs the VQGANs `runs/vqgan-shapes` (`configs/vqgan/shapes.py`) and `runs/vqgan-240`, the same with
`--config.model.quantizer.levels=8,6,5`. The first run has all changes, each of the others one less, and the last none.
"""

from ml_collections import ConfigDict

from . import shapes

# Without a change.
WITHOUT = {
    "complete captions first": {"data.leading_prob": 0.0, "data.leading_captions": 1},
    "more scenes of two objects": {"data.source": "shapes/32/train=100000"},
    "100,000 scenes": {"data.source": "shapes/32 | shapes/32 where label=-1"},
    "512 codes": {"vqgan.path": "runs/vqgan-240"},
    "depth 6": {"model.depth": 4},
    "no dropout": {"dropout": 0.1},
}


def get_config() -> ConfigDict:
    c = shapes.get_config()
    c.steps = 2000
    c.optim.schedule = "wsd"  # a cosine to 0 after 2,000 updates is low before the relation is learnt
    c.codes = ConfigDict({"dir": "runs/two-objects-codes"})  # each VQGAN encodes each data set once for all runs
    c.checkpoint.every = 500
    del c.evals.novel
    for evaluator in c.evals.values():
        evaluator.every = 0
    return c


def sweep():
    yield {}
    yield from WITHOUT.values()
    yield {name: value for options in WITHOUT.values() for name, value in options.items()} | {"data.source": "shapes/32"}
