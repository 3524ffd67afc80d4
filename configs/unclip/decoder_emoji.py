"""The decoder of unCLIP (DALL-E 2) on emoji at 32 pixels; `upsampler_emoji.py` enlarges its images to 64.

    train-jax prepare emoji/64/held_out=none
    train-jax --config=configs/unclip/decoder_emoji.py --workdir=runs/unclip-decoder-emoji \
        --config.clip.path=runs/clip-emoji --config.prior.path=runs/unclip-prior-emoji

Needs the CLIP of `configs/clip/emoji.py` and the prior of `configs/unclip/prior_emoji.py`. Not trained yet.
"""

from ml_collections import ConfigDict

from . import decoder_shapes, prior_emoji


def get_config() -> ConfigDict:
    c = decoder_shapes.get_config()
    c.data = ConfigDict({"source": prior_emoji.SOURCE, "batch_size": 32})
    c.clip.path, c.prior.path = "runs/clip-emoji", "runs/unclip-prior-emoji"
    # Pairs of thing and artist that were held out, as for `configs/dalle/emoji.py`.
    look = {"source": prior_emoji.DRAWINGS, "where": ("tone=",)}
    draw = {**look, "type": "drawing", "about": "fields", "template": "{concept}, {style}", "prompts": 256}
    draw.update({"guidance": 3.0, "prior_guidance": 1.0})
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({**look, "type": "reconstruction", "split": "pairs", "every": 2500})
    c.evals.drawn = ConfigDict({**draw, "split": "pairs", "every": 2500})
    c.evals.known = ConfigDict({**draw, "split": "train"})
    return c
