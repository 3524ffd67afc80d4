"""Rematerialisation of the ResNet's blocks: the same gradients and batch statistics from fewer saved activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.options import CLIPOptions
from clip_jax.resnet import ResNetTower
from tests.trees import assert_close
from train_jax.compute import Compute

IMAGE = {"tower": "resnet", "size": 32, "width": 8, "heads": 4, "layers": (1, 1, 1, 1)}


def test_rematerialised_bottlenecks_have_the_same_gradients_and_statistics_and_save_less(random_variables):
    options = CLIPOptions.parse({"embed_dim": 8, "image": IMAGE}, "model")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    variables = random_variables(ResNetTower(options, Compute()).init, jax.random.key(0), images)
    params, statistics = variables["params"], variables["batch_stats"]

    def loss(remat, dtype, params):
        module = ResNetTower(options, Compute(dtype=dtype, remat=remat))
        variables = {"params": params, "batch_stats": statistics}
        features, updated = module.apply(variables, images, False, mutable=["batch_stats"])
        return jnp.mean(features**2), updated["batch_stats"]

    def saved(remat) -> int:
        """Number of values that the backward pass receives: the leaves of the function that `jax.vjp` returns."""
        function = functools.partial(loss, remat, "bfloat16")
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(function, p, has_aux=True)[1], params)))

    # The results of each stage's convolutions, the shortcut's last; the second has not yet been averaged over positions.
    convolved = 64 * (8 + 8 + 32 + 32) + 64 * (16 + 16) + 16 * (64 + 64)
    convolved += 16 * (32 + 32) + 4 * (128 + 128) + 4 * (64 + 64) + 1 * (256 + 256)
    assert saved("dots") - saved("full") == len(images) * convolved
    assert saved("none") - saved("dots") > 2 * len(images) * convolved  # what norms and ReLUs save

    def gradients(remat):
        return jax.grad(functools.partial(loss, remat, "float32"), has_aux=True)

    expected, actual = jax.jit(lambda p: (gradients("none")(p), gradients("full")(p)))(params)
    assert_close(actual[0], expected[0], 1e-5)
    assert_close(actual[1], expected[1], 1e-6)
    moved = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), actual[1], statistics)
    assert all(jax.tree.leaves(moved))
