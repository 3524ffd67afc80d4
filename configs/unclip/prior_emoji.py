"""The prior of unCLIP (DALL-E 2) on emoji of animals, plants and food: captions, and embeddings of `configs/clip/emoji.py`.

    train-jax prepare emoji/64/held_out=none
    train-jax --config=configs/unclip/prior_emoji.py --workdir=runs/unclip-prior-emoji

Needs the CLIP of `make emoji`. Not trained yet.
"""

from ml_collections import ConfigDict

from . import prior_shapes

DRAWINGS = "emoji/64/held_out=none"
SOURCE = f"{DRAWINGS} where group=Animals & Nature | {DRAWINGS} where group=Food & Drink"


def get_config() -> ConfigDict:
    c = prior_shapes.get_config()
    c.steps = 2500
    c.data = ConfigDict({"source": SOURCE, "batch_size": 128})
    c.clip.path = "runs/emoji/clip"
    c.condition_dropout = 0.2  # there are few captions of a drawing, and many updates
    look = {"type": "embeddings", "every": 1250, "guidance": 1.0}
    c.checkpoint.every = 1250
    c.evals = ConfigDict()
    c.evals.pairs = ConfigDict({**look, "split": "pairs"})
    c.evals.guided = ConfigDict({**look, "split": "pairs", "guidance": 3.0})
    c.evals.known = ConfigDict({**look, "split": "train"})
    return c
