"""Every module can be differentiated forwards: `jax.jvp` is the transpose of `jax.vjp`.

Values are compared for small modules that hold every rule of `nn_jax` of its own; for the whole models, whose programs
take long to compile, by `make slow`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import model as clip_model
from clip_jax.options import CLIPOptions, ImageOptions
from clip_jax.resnet import ResNetTower
from nn_jax.code_transformer import CodeTransformer, TokenEmbedding
from train_jax.compute import Compute
from vqgan_jax import discriminator, dvae, perceptual
from vqgan_jax import model as vqgan_model

DRAW = np.random.default_rng(0)
PICTURES = DRAW.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
CODES = jnp.asarray(DRAW.integers(0, 9, (1, 16)), jnp.int32)


def drawn(module, *inputs):
    """Variables of a module, none of them 0: a slope through what starts at zero would not be seen."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def draw(path, x):
        return jnp.asarray(0.3 * DRAW.normal(size=x.shape) + (path[-1].key in ("scale", "var")), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(jax.eval_shape(module.init, keys, *inputs)))


def clip():
    blocks = {"width": 16, "depth": 1, "heads": 2}
    image, text = {"size": 16, "patch": 4, "stem": "conv", "pool": "map"} | blocks, {"context_length": 8} | blocks
    module = clip_model.build({"embed_dim": 8, "image": image, "text": text}, 20, 19)
    ids = jnp.full((1, 8), 19, jnp.int32)

    def embeddings(v, x):
        return module.apply(v, x, method="encode_image"), module.apply(v, ids, method="encode_text")

    return embeddings, drawn(module, PICTURES, ids)


def resnet():
    image = ImageOptions("resnet", 32, width=4, heads=2, layers=(1, 1))
    module = ResNetTower(CLIPOptions(8, image), Compute())
    large = np.tile(PICTURES, (1, 2, 2, 1))
    return lambda v, x: module.apply(v, jnp.tile(x, (1, 2, 2, 1))), drawn(module, large)


def vqgan():
    model = {"channels": 4, "multipliers": (1, 2), "blocks": 1, "resolution": 16, "attention": (8,), "groups": 2}
    model |= {"z_channels": 4, "quantizer": {"size": 9, "dim": 4}}
    module = vqgan_model.build(model)

    def reconstruct(v, x):  # without the rounding, which has no slope
        return module.apply(v, module.apply(v, x, method="latents"), method="decode_vectors")

    return reconstruct, drawn(module, PICTURES)


def dall_e_s_vae():
    module = dvae.DVAE(dvae.Codes(9), 4, 1, 4)

    def reconstruct(v, x):
        return module.apply(v, jax.nn.softmax(module.apply(v, x, method="latents")), method="decode_vectors")

    return reconstruct, drawn(module, PICTURES)


def patches():
    module = discriminator.Discriminator(4, 2, "group", jnp.float32)
    return module.apply, drawn(module, PICTURES)


def lpips():
    def layer(inputs: int):
        return {"kernel": DRAW.normal(0, 0.3, (3, 3, inputs, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}

    layers = [index for part in perceptual._SLICES for index in part]
    weights = {"vgg": {str(index): layer(4 if index else 3) for index in layers}}
    weights["lin"] = {str(index): np.ones(4, np.float32) for index in range(5)}
    return lambda v, x: perceptual.lpips(v, x, jnp.zeros_like(x)), weights


def second_stage(tokens: int, **changes):
    """A model of a condition of so many tokens, and of 4 x 4 codes."""
    attributes = {
        "condition": TokenEmbedding(20, (1, tokens), 16),
        "num_codes": 9,
        "grid": (4, 4),
        "width": 16,
        "depth": 1,
        "heads": 2,
        "dropout": 0.1,
        "predicts_condition": False,
        "joint_vocabulary": False,
        "axial": False,
        "patterns": ("dense",),
        "conv_window": 3,
        "dtype": jnp.float32,
        "blocks": {},
    }
    module = CodeTransformer(**attributes | changes)
    condition = jnp.zeros((1, tokens), jnp.int32)
    return lambda v, x: module.apply(v, condition, CODES), drawn(module, condition, CODES)


def prior():
    return second_stage(1)


def dalle():
    return second_stage(4, predicts_condition=True, axial=True)


WHOLE_MODELS = (clip, resnet, vqgan, dall_e_s_vae, dalle)


def flat(function, variables, x):
    return jnp.concatenate([y.ravel() for y in jax.tree.leaves(function(variables, x))])


@pytest.mark.parametrize("make", [clip, resnet, vqgan, dall_e_s_vae, patches, lpips, prior, dalle])
def test_forward_mode_is_defined(make):
    """A rule for the backward pass alone (`custom_vjp`) anywhere in a model is an error when its tangent is lowered."""
    function, variables = make()
    inputs = (variables, jnp.asarray(PICTURES))
    lowered = jax.jit(lambda *x: jax.jvp(functools.partial(flat, function), x, x)).lower(*inputs)
    assert lowered.out_info[1].size > 0


@pytest.mark.parametrize("make", [patches, lpips, prior, *(pytest.param(m, marks=pytest.mark.slow) for m in WHOLE_MODELS)])
def test_forwards_is_the_transpose_of_backwards(make):
    function, variables = make()
    inputs = (variables, jnp.asarray(PICTURES))
    leaves, tree = jax.tree.flatten(inputs)
    direction = tree.unflatten([jnp.asarray(DRAW.normal(size=x.shape), x.dtype) for x in leaves])
    scalars = functools.partial(flat, function)

    @jax.jit
    def both(inputs, direction):
        y, tangent = jax.jvp(scalars, inputs, direction)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32))
        gradients = jax.vjp(scalars, *inputs)[1](weights)
        return tangent, jnp.vdot(weights, tangent), optax.tree.vdot(gradients, direction)

    tangent, forwards, backwards = both(inputs, direction)
    scale = float(jnp.linalg.norm(tangent))
    assert scale > 0
    np.testing.assert_allclose(forwards, backwards, rtol=1e-4, atol=1e-4 * scale)
