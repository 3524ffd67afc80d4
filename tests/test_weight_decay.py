"""Which parameters of every family are decayed by default: kernels, and nothing else."""

import re

import jax
import jax.numpy as jnp
import pytest

import clip_jax.model
import vqgan_jax.discriminator
import vqgan_jax.model
import vqgan_jax.stage2.model
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.compute import Compute
from vqgan_jax.stage2.condition import ClassCondition


def clip(**changes):
    options = clip_jax.model.CLIPOptions.defaults()
    options.update_from_flattened_dict(changes)
    module = clip_jax.model.build(options, 100, 99)
    size, length = options.image.size, options.text.context_length
    return module.init, jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)


def vqgan(**changes):
    options = vqgan_jax.model.VQGANOptions.defaults()
    options.update_from_flattened_dict(changes)
    module = vqgan_jax.model.build(options)
    return lambda key, x: module.init({"params": key, "dropout": key}, x), jnp.zeros((1, 256, 256, 3))


def discriminator():
    module = vqgan_jax.discriminator.build(vqgan_jax.discriminator.DiscriminatorOptions.defaults(), Compute())
    return module.init, jnp.zeros((1, 256, 256, 3))


class Predicted(ClassCondition):
    """A condition of several tokens that are predicted, as DALL-E's texts are."""

    length = 4
    predicted = True


def second_stage(condition, **changes):
    options = vqgan_jax.stage2.model.CodeTransformerOptions(**changes)
    module = vqgan_jax.stage2.model.build(options, condition, 64, (4, 4))
    return module.init, jnp.zeros((1, condition.length), jnp.int32), jnp.zeros((1, 16), jnp.int32)


def prior():
    return second_stage(ClassCondition(10))


def dalle(**changes):
    return second_stage(Predicted(10), **changes)


PLAIN = {"bias", "scale"}
CLIP = PLAIN | {"positions", "tokens", "logit_scale"}
SIGLIP = {"loss": "sigmoid", "image.pool": "map"}
STREAM = PLAIN | {"tokens", "positions"}


@pytest.mark.parametrize(
    ("model", "spared"),
    [
        (clip, CLIP | {"cls"}),
        (lambda: clip(**SIGLIP), CLIP | {"probe", "logit_bias"}),
        (lambda: clip(**{"image.tower": "resnet", "image.heads": 32, "image.width": 64}), CLIP),
        (lambda: clip(**{"image.tower": "convnext"}), (CLIP | {"layer_scale"})),
        (vqgan, PLAIN | {"codebook"}),
        (lambda: vqgan(**{"quantizer.type": "gumbel"}), PLAIN | {"codebook"}),
        (lambda: vqgan(**{"quantizer.type": "ema"}), PLAIN),
        (lambda: vqgan(**{"quantizer.type": "fsq"}), PLAIN),
        (lambda: vqgan(**{"quantizer.type": "lfq"}), PLAIN),
        (discriminator, PLAIN),
        (prior, STREAM),
        (lambda: dalle(positions="axial"), STREAM | {"rows", "columns"}),
        (lambda: dalle(vocabulary="joint"), STREAM),
    ],
    ids=[
        "vit",
        "siglip",
        "resnet",
        "convnext",
        "nearest",
        "gumbel",
        "ema",
        "fsq",
        "lfq",
        "discriminator",
        "prior",
        "dalle",
        "joint",
    ],
)
def test_kernels_alone_are_decayed(model, spared):
    init, *inputs = model()
    boxed = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    patterns = config_lib.OptimOptions().no_decay
    names = {True: set(), False: set()}
    for path in sharding.logical_axes({"player": boxed}):
        names[any(re.search(pattern, path) for pattern in patterns)].add(path.rpartition("/")[2])
    assert names == {True: spared, False: {"kernel"}}
