"""The prior of unCLIP (DALL-E 2) on emoji: captions, and embeddings of `configs/clip/emoji.py`.

    train-jax prepare emoji/64/held_out=none
    train-jax --config=configs/unclip/prior_emoji.py --workdir=runs/unclip-prior-emoji --config.clip.path=runs/clip-emoji

Not trained yet.
"""

from ml_collections import ConfigDict

from . import prior_shapes

# Half of the drawings are other skin tones of the same things; those without make two thirds of the mixture.
DRAWINGS = "emoji/64/held_out=none"
SOURCE = f"2 {DRAWINGS} | {DRAWINGS} where tone="


def get_config() -> ConfigDict:
    c = prior_shapes.get_config()
    c.data = ConfigDict({"source": SOURCE, "batch_size": 128})
    c.clip.path = "runs/clip-emoji"
    c.condition_dropout = 0.2  # there are few captions of a drawing, and many updates
    look = {"type": "embeddings", "source": DRAWINGS, "where": ("tone=",), "every": 2000, "guidance": 1.0}
    c.evals = ConfigDict()
    c.evals.pairs = ConfigDict({**look, "split": "pairs"})
    c.evals.guided = ConfigDict({**look, "split": "pairs", "guidance": 3.0})
    c.evals.known = ConfigDict({**look, "split": "train"})
    return c
