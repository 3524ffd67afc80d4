"""Parameterisations, for every quantiser: what is shown, and where its gradient goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import model as model_lib
from vqgan_jax import quantize
from vqgan_jax.guided import latents

POINTS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
Z = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
LOGITS = np.random.default_rng(2).standard_normal((2, 4, 6)).astype(np.float32)
POINTS_J, Z_J, LOGITS_J = map(jnp.asarray, (POINTS, Z, LOGITS))


@pytest.mark.parametrize(
    "quantizer",
    [
        {"type": "nearest", "size": 6, "dim": 3},
        {"type": "nearest", "size": 6, "dim": 3, "unit": True},
        {"type": "ema", "size": 6, "dim": 3},
        {"type": "gumbel", "size": 6, "dim": 3},
        {"type": "fsq", "levels": (3, 2)},
        {"type": "lfq", "bits": 3},
    ],
    ids=lambda q: q["type"] + "-unit" * q.get("unit", False),
)
def test_the_table_holds_what_the_quantiser_embeds(quantizer):
    options = model_lib.VQGANOptions.defaults()
    options.update({"channels": 8, "multipliers": (1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4})
    options.quantizer.update(quantizer)
    part = quantize.build(quantize.QuantizerOptions.parse(options.quantizer, "model.quantizer"))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 3, part.inputs)).astype(np.float32))
    found = nn.unbox(part.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, z, False, 1.0))
    points = latents.table(model_lib.build(options), {kind: {"quantizer": tree} for kind, tree in found.items()})
    assert points.shape == (part.size, part.dim)
    codes = jnp.arange(part.size)[None, None]
    np.testing.assert_allclose(points, part.apply(found, codes, method="embed")[0, 0], rtol=1e-6)
    # A vector of the codebook shows itself.
    np.testing.assert_allclose(latents.vectors("straight", points[None], points, 1.0, None)[0], points, atol=1e-6)


def test_straight_shows_the_nearest_and_passes_gradients():
    nearest = np.array([[np.argmin(((z - POINTS) ** 2).sum(1)) for z in row] for row in Z])
    seen, pullback = jax.vjp(lambda z: latents.vectors("straight", z, POINTS_J, 1.0, None), Z_J)
    np.testing.assert_allclose(seen, POINTS[nearest], atol=1e-6)
    g = np.random.default_rng(3).standard_normal(Z.shape).astype(np.float32)
    np.testing.assert_array_equal(pullback(g)[0], g)
    np.testing.assert_array_equal(latents.codes("straight", Z_J, POINTS_J), nearest)
    np.testing.assert_array_equal(latents.shown("straight", Z_J, POINTS_J, 1.0), POINTS[nearest])


def test_soft_is_the_mean_by_probabilities():
    for heat in (1.0, 0.3):
        p = np.exp(LOGITS / heat) / np.exp(LOGITS / heat).sum(-1, keepdims=True)
        for seen in (
            latents.vectors("soft", LOGITS_J, POINTS_J, heat, None),
            latents.shown("soft", LOGITS_J, POINTS_J, heat),
        ):
            np.testing.assert_allclose(seen, p @ POINTS, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(latents.vectors("soft", LOGITS_J, None, heat, None), p, rtol=1e-5)


def test_gumbel_draws_codes_by_their_probabilities():
    draw = jax.jit(jax.vmap(lambda key: latents.vectors("gumbel", LOGITS_J, None, 0.7, key)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(np.sort(drawn, axis=-1)[..., -1], 1, atol=1e-5)  # one code each
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    np.testing.assert_allclose(drawn.mean(0), p, atol=0.03)
    np.testing.assert_array_equal(latents.shown("gumbel", LOGITS_J, POINTS_J, 1.0), POINTS[LOGITS.argmax(-1)])
    # The gradient is the relaxed draw's.
    key = jax.random.key(1)
    noisy = LOGITS + np.asarray(jax.random.gumbel(key, LOGITS.shape))
    relaxed = jax.vjp(lambda z: jax.nn.softmax(z / 0.7) @ POINTS, noisy)[1]
    g = np.random.default_rng(4).standard_normal(Z.shape).astype(np.float32)
    found = jax.vjp(lambda z: latents.vectors("gumbel", z, POINTS_J, 0.7, key), LOGITS_J)[1](g)[0]
    np.testing.assert_allclose(found, relaxed(g)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["straight", "soft", "gumbel"])
def test_a_start_shows_its_codes(kind):
    codes = np.array([[0, 5, 3], [2, 2, 1]], np.int32)
    z = latents.begin(kind, jnp.asarray(codes), POINTS_J, 6)
    np.testing.assert_array_equal(latents.codes(kind, z, POINTS_J), codes)
    if kind != "straight":
        share = np.asarray(jax.nn.softmax(z))
        np.testing.assert_allclose(np.take_along_axis(share, codes[..., None], axis=-1), 0.5, rtol=1e-5)


def test_vectors_stay_in_the_codebooks_range():
    low, high = POINTS.min(0), POINTS.max(0)
    np.testing.assert_allclose(latents.bounded("straight", 5 * Z_J, POINTS_J), np.clip(5 * Z, low, high))
    np.testing.assert_array_equal(latents.bounded("soft", LOGITS_J, POINTS_J), LOGITS)
