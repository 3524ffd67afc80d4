"""Every module can be differentiated forwards: `jax.jvp` is the transpose of `jax.vjp`, and the slope of a difference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import model as clip_model
from dalle_jax import model as dalle_model
from vqgan_jax import discriminator, dvae, perceptual
from vqgan_jax import model as vqgan_model
from vqgan_jax.prior import model as prior_model

DRAW = np.random.default_rng(0)
PICTURES = DRAW.uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
CODES = jnp.asarray(DRAW.integers(0, 9, (1, 16)), jnp.int32)


def options(defaults, **changes):
    found = defaults()
    found.update(changes)
    return found


def drawn(module, *inputs):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return nn.unbox(jax.jit(module.init)(keys, *inputs))


def clip(image: dict):
    text = {"context_length": 8, "width": 8, "depth": 2, "heads": 2}
    image = {"size": 32, "width": 16, "depth": 2, "heads": 2} | image
    module = clip_model.build(options(clip_model.defaults, embed_dim=8, image=image, text=text), 20, 19)
    variables = drawn(module, PICTURES, jnp.full((1, 8), 19, jnp.int32))
    return lambda v, x: module.apply(variables | v, x, method="encode_image"), variables


def vqgan():
    model = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "resolution": 32, "attention": (16,), "groups": 4}
    module = vqgan_model.build(options(vqgan_model.defaults, **model, z_channels=4, quantizer={"size": 9, "dim": 4}))

    def reconstruct(v, x):  # without the rounding, which has no slope
        return module.apply(v, module.apply(v, x, method="latents"), method="decode_vectors")

    return reconstruct, drawn(module, PICTURES)


def dall_e_s_vae():
    module = dvae.DVAE(dvae.Codes(9), 8, 1, 8)

    def reconstruct(v, x):
        return module.apply(v, jax.nn.softmax(module.apply(v, x, method="latents")), method="decode_vectors")

    return reconstruct, drawn(module, PICTURES)


def patches():
    module = discriminator.Discriminator(4, 2, "group", jnp.float32)
    return module.apply, drawn(module, PICTURES)


def lpips():
    def layer(inputs: int):
        return {"kernel": DRAW.normal(0, 0.3, (3, 3, inputs, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}

    places = [place for part in perceptual._SLICES for place in part]
    weights = {"vgg": {str(place): layer(4 if place else 3) for place in places}}
    weights["lin"] = {str(number): np.ones(4, np.float32) for number in range(5)}
    return lambda v, x: perceptual.lpips(v, x, jnp.zeros_like(x)), weights


def prior():
    small = {"classes": 3, "width": 16, "depth": 2, "heads": 2}
    module = prior_model.build(options(prior_model.defaults, **small), 9, 16)
    return lambda v, x: module.apply(v, CODES, jnp.zeros(1, jnp.int32)), drawn(module, CODES, jnp.zeros(1, jnp.int32))


def dalle():
    small = {"text_length": 4, "width": 16, "depth": 2, "heads": 2}
    module = dalle_model.build(options(dalle_model.defaults, **small), 20, 9, (4, 4))
    text = jnp.zeros((1, 4), jnp.int32)
    return lambda v, x: module.apply(v, text, CODES), drawn(module, text, CODES)


@pytest.mark.parametrize(
    "make",
    [
        lambda: clip({"patch": 4, "stem": "conv", "pool": "map"}),
        lambda: clip({"tower": "resnet", "layers": (1, 1, 1, 1), "width": 8}),
        vqgan,
        dall_e_s_vae,
        patches,
        lpips,
        prior,
        dalle,
    ],
    ids=["clip", "resnet", "vqgan", "dvae", "discriminator", "lpips", "prior", "dalle"],
)
def test_forwards_is_the_transpose_of_backwards(make):
    function, variables = make()
    at = (variables, jnp.asarray(PICTURES))
    leaves, tree = jax.tree.flatten(at)
    along = tree.unflatten([jnp.asarray(DRAW.normal(size=x.shape), x.dtype) for x in leaves])

    def flat(variables, x):
        return jnp.concatenate([y.ravel() for y in jax.tree.leaves(function(variables, x))])

    @jax.jit
    def both(at, along):
        y, tangent = jax.jvp(flat, at, along)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32))
        slopes = jax.vjp(flat, *at)[1](weights)
        step = 1e-4
        ends = (flat(*optax.tree.add_scale(at, sign * step, along)) for sign in (1, -1))
        difference = (next(ends) - next(ends)) / (2 * step)
        return tangent, jnp.vdot(weights, tangent), optax.tree.vdot(slopes, along), difference

    tangent, forwards, backwards, difference = both(at, along)
    scale = float(jnp.linalg.norm(tangent))
    assert scale > 0
    np.testing.assert_allclose(forwards, backwards, rtol=1e-4, atol=1e-4 * scale)
    assert jnp.linalg.norm(difference - tangent) < 0.05 * scale
