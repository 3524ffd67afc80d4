"""Rematerialisation of the autoencoder's blocks: the same gradients from fewer saved activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trees import assert_close
from train_jax.compute import Compute
from vqgan_jax import model

OPTIONS = {"channels": 8, "multipliers": (1, 1), "blocks": 1, "resolution": 16, "attention": (8,), "groups": 4}


def test_rematerialised_blocks_have_the_same_gradients_and_save_less():
    options = model.VQGANOptions.parse({**OPTIONS, "z_channels": 8, "quantizer": {"type": "fsq"}}, "model")
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(model.build(options).init)(keys, images)

    def loss(remat, variables):
        module = model.build(options, Compute(remat=remat), dropout=0.1)
        rngs = {"dropout": jax.random.key(2)}
        features, _ = module.apply(variables, images, False, method="features", rngs=rngs)
        return jnp.mean((module.apply(variables, features, method="pixels") - images) ** 2)

    def saved(remat) -> int:
        """Number of values that the backward pass receives: the leaves of the function that `jax.vjp` returns."""
        pull = jax.eval_shape(lambda v: jax.vjp(functools.partial(loss, remat), v)[1], variables)
        return sum(x.size for x in jax.tree.leaves(pull))

    modes = ("none", "dots", "full")
    grads = jax.jit(lambda v: {remat: jax.grad(functools.partial(loss, remat))(v) for remat in modes})(variables)
    for remat in modes[1:]:
        assert_close(grads[remat], grads["none"], 1e-5)
    assert saved("full") < 0.8 * saved("dots") < 0.8 * 0.8 * saved("none")


@pytest.mark.parametrize("layout", ["movq", "magvit2"])
def test_conditional_norms_rematerialise(layout):
    options = {**OPTIONS, "layout": layout, "z_channels": 4, "quantizer": {"type": "nearest", "size": 8, "dim": 4}}
    images = jnp.zeros((2, 16, 16, 3))
    variables = jax.eval_shape(model.build(options).init, jax.random.key(0), images)

    def gradient(remat):
        module = model.build(options, Compute(remat=remat))
        return jax.eval_shape(jax.grad(lambda variables: jnp.mean(module.apply(variables, images))), variables)

    assert gradient("full") == gradient("none") == variables
