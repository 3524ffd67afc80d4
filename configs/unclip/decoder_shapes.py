"""The decoder of unCLIP (DALL-E 2) on rendered scenes of 32 pixels, their captions and embeddings.

    train-jax prepare shapes/32/train=100000
    train-jax --config=configs/unclip/decoder_shapes.py --workdir=runs/unclip-decoder-shapes \
        --config.clip.path=runs/clip-shapes --config.prior.path=runs/unclip-prior-shapes

Needs the CLIP of `configs/clip/shapes.py` and the prior of `configs/unclip/prior_shapes.py`, and may share its
embeddings (`--config.embeddings.dir=runs/unclip-prior-shapes/embeddings`). On one of two CPU cores, beside other work:
73 minutes; 58 at its best rate. Of 256 prompts, one sample each at guidance 3, read by the oracle: one object 98.0 %
correct on pairs of `train` and 90.2 % on `novel`, captions of two objects 4.7 % (the colours of both 69.5 %, with their
shapes 25.4 %). Of the embeddings of 256 true images it draws what they show in 62.1 %.
"""

from ml_collections import ConfigDict

from . import prior_shapes


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.unclip.decoder_task"
    c.steps = 3000
    c.log_every = 100
    c.data = ConfigDict({"source": prior_shapes.SOURCE, "batch_size": 32})
    c.data.leading_prob, c.data.leading_captions = 0.8, 4
    c.clip = ConfigDict({"path": "runs/clip-shapes"})
    c.prior = ConfigDict({"path": "runs/unclip-prior-shapes"})
    # Patches of 2 x 2 pixels: convolutions of many channels are what a CPU computes fast.
    c.model = ConfigDict({"size": 32, "patch": 2, "channels": (64, 128), "blocks": 1, "groups": 8, "attention": (1,)})
    c.model.update({"head_dim": 16, "context_dim": 64, "image_tokens": 4})
    # Predicted noise tells little of the colour of the paper, the mean of an image; velocity does.
    c.diffusion = ConfigDict({"prediction": "v"})
    c.min_snr = 5.0
    c.optim = ConfigDict({"name": "contrib.muon", "lr": 3e-3, "warmup_steps": 100, "weight_decay": 0.01})
    c.optim.args = ConfigDict({"consistent_rms": 0.2, "adam_b2": 0.99})
    c.ema = ConfigDict({"decay": 0.999})
    c.checkpoint = ConfigDict({"every": 1500, "keep_last": 1})
    draw = {"type": "drawing", "prompts": 256, "guidance": 3.0, "prior_guidance": 1.0}
    c.evals = ConfigDict()
    c.evals.test = ConfigDict({"type": "reconstruction", "split": "test"})
    c.evals.seen = ConfigDict({**draw, "split": "test"})
    c.evals.novel = ConfigDict({**draw, "split": "novel"})
    c.evals.two = ConfigDict({**draw, "split": "test", "about": "pairs"})
    return c
