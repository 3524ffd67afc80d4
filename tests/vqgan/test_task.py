"""VQGAN as a task: its options, and the warnings of a run.

Its loss: test_gan.py. Its updates: test_steps.py, test_devices.py. In bfloat16: test_bfloat16.py.
"""

import pytest

from train_jax.errors import ConfigError
from vqgan_jax import task


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook.start": "zeros"}, "codebook.start = 'zeros'; it must be one of random, kmeans"),
        ({"codebook.revive": -1}, "codebook.revive = -1; it must be 0 or more"),
        (
            {"model.quantizer.type": "fsq", "codebook.revive": 5},
            "it must be the default for fsq, which has no codebook",
        ),
        ({"model.quantizer.type": "gumbel", "codebook.start": "kmeans"}, "it must be the default for gumbel"),
        ({"loss.adversarial": "wgan"}, "hinge, vanilla, non_saturating, none"),
        ({"loss.pixels": "l3"}, "one of l1, l2"),
        ({"loss.disc_ramp": 0}, "disc_ramp = 0; it must be at least 1"),
        ({"loss.r1": -1.0}, "r1 = -1.0; it must be 0 or more"),
        ({"perceptual.type": "lpips"}, "needs config.perceptual.path: weights of LPIPS"),
        ({"model.groups": 3}, "groups = 3 does not divide the 8 channels of level 0"),
        ({"model.resolution": 17, "model.multipliers": (1, 2)}, "resolution = 17 is not divisible by f = 2"),
        ({"model.attention": (5,)}, "attention has 5; the feature maps have sides"),
        ({"model.layout": "vqvae"}, "it must be one of taming, movq, maskgit, magvit2"),
        ({"model.layout": "magvit2"}, "z_channels = 8; it must be the quantiser's 4 channels for layout magvit2"),
        ({"model.quantizer.type": "ibq", "codebook.revive": 5}, "it must be the default for ibq"),
        ({"compute.dtype": "float16"}, "one of float32, bfloat16"),
        ({"discriminator.norm": "layer"}, "one of group, batch"),
        ({"augment.scale": (0.0, 1.0)}, r"it must be in \(0, 1\]"),
        ({"augment.scale": (0.9, 0.5)}, "two shares of the area"),
    ],
)
def test_wrong_options_are_named(small, changes, words):
    with pytest.raises(ConfigError, match=words):
        task.make(small.config(**changes), None)


def test_the_log_warns_of_collapse_and_of_a_discriminator_that_wins(small):
    made = task.make(small.config(), None)
    fine = {"usage": 0.5, "loss_discriminator": 0.4}
    assert made.warnings(fine, 500) == []
    (words,) = made.warnings(fine | {"usage": 0.01}, 500)
    assert "the codebook has collapsed: 1.0 % of 16 codes" in words
    assert made.warnings(fine | {"usage": 0.01}, 100) == []
    (words,) = made.warnings(fine | {"loss_discriminator": 0.001}, 500)
    assert "the discriminator dominates" in words
