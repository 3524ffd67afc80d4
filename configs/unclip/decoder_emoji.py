"""The decoder of unCLIP (DALL-E 2) on emoji of animals, plants and food at 64 pixels.

    train-jax prepare emoji/64/held_out=none
    train-jax --config=configs/unclip/decoder_emoji.py --workdir=runs/unclip-decoder-emoji

Needs the CLIP of `make emoji` and the prior of `configs/unclip/prior_emoji.py`. Not trained yet.
"""

from ml_collections import ConfigDict

from . import decoder_shapes, prior_emoji


def get_config() -> ConfigDict:
    c = decoder_shapes.get_config()
    c.data = ConfigDict({"source": prior_emoji.SOURCE, "batch_size": 32})
    c.clip.path, c.prior.path = "runs/emoji/clip", "runs/unclip-prior-emoji"
    c.model.update({"size": 64, "patch": 4})
    # Pairs of thing and artist that were held out, as for `configs/dalle/emoji.py`.
    draw = {"type": "drawing", "about": "fields", "template": "{concept}, {style}", "prompts": 256, "where": ("tone=",)}
    draw.update({"guidance": 3.0, "prior_guidance": 1.0})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "reconstruction", "split": "pairs", "every": 1500})
    c.evals.drawn = ConfigDict({**draw, "split": "pairs", "every": 1500})
    c.evals.known = ConfigDict({**draw, "split": "train"})
    return c
