"""A VQGAN in bfloat16 trains as in float32: gradients of both players, and the first updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vqgan_jax
from vqgan_jax import quantize, task


def gradients(loss, batch, params, extra):
    """Total, metrics and gradients of a task's loss, at an update at which the adversarial weight has risen."""
    batch = jax.tree.map(jnp.asarray, batch)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (total, (metrics, _)), grads = value_and_grad(params, extra, batch, jax.random.key(2), 20)
    return total, metrics, grads


@jax.jit
def distance(a, b) -> jax.Array:
    """Relative distance of two trees."""
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)


def test_gradients_of_both_players_in_bfloat16_are_those_of_float32(small, monkeypatch):
    """With the same codes in both: a latent between two codes may fall to the other, and change the reconstruction."""
    options = {"loss.r1": 0.1, "loss.lecam": 0.1, "model.middle_attention": True}
    made, params, extra = small.start(small.config(**options))
    # Weights of such a size that gradients are no differences of nearly equal sums.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
    params["generator"]["quantizer"]["codebook"] = rng.standard_normal((16, 4), np.float32)
    codes = jnp.asarray(rng.integers(0, 16, (8, 16, 16)), jnp.int32)
    monkeypatch.setattr(quantize, "nearest_codes", lambda z, codebook: codes)
    exact = jax.jit(functools.partial(gradients, made.loss, small.batch))
    total, metrics, grads = exact(params, extra)
    made = task.make(small.config(**options, **{"compute.dtype": "bfloat16"}), None)
    short = jax.jit(functools.partial(gradients, made.loss, small.batch))
    short_total, short_metrics, short_grads = short(params, extra)
    assert {x.dtype for x in jax.tree.leaves((short_grads, short_metrics, short_total))} == {np.dtype("float32")}
    # Each layer rounds four times, weights, inputs, outputs and the gradient coming back: twice the error of weights alone.
    *_, rounded = exact(jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params), extra)
    for player in ("discriminator", "generator"):
        assert distance(short_grads[player], grads[player]) < 2 * distance(rounded[player], grads[player]) < 0.2
    np.testing.assert_allclose(short_total, total, rtol=0.02)
    np.testing.assert_allclose(short_metrics["adaptive_weight"], metrics["adaptive_weight"], rtol=0.1)


def test_eight_images_are_overfitted_in_bfloat16_as_in_float32(learn, small):
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:8, :8] / 8
    waves = [np.sin(rng.uniform(2, 7, 3) * row[..., None] + rng.uniform(2, 7, 3) * column[..., None]) for _ in range(8)]
    batch = {"image": np.round(127.5 + 120 * np.stack(waves)).astype(np.uint8)}
    curves = {}
    for dtype, updates in (("float32", 250), ("bfloat16", 12)):
        options = {"compute.dtype": dtype, "model.quantizer.size": 64, "model.resolution": 8, "loss.adversarial": "none"}
        options |= {"codebook.start": "kmeans", "codebook.revive": 10, "steps": 250, "optim.lr": 5e-3}
        c = small.config(**options)
        state, history = learn(task.make(c, None), c, batch, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        if dtype == "float32":
            assert history[-1]["psnr"] > 25, "dB"
            variables = {"params": state.params["generator"], **state.extra["generator"]}
            vq = vqgan_jax.Vqgan.assemble(c.model, variables, "overfitted")
            assert -10 * np.log10(np.mean((vq.reconstruct(batch["image"]) - batch["image"] / 255) ** 2)) > 25
    # The first loss is off by rounding alone; then a latent between two codes may fall to the other side.
    np.testing.assert_allclose(curves["bfloat16"][0], curves["float32"][0], rtol=0.02)
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"][:12], rtol=0.1)
