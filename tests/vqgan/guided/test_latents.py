"""Parameterisations, for every quantiser: what is shown, and where its gradient goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import model as model_lib
from vqgan_jax import quantize
from vqgan_jax.guided import latents

CODEBOOK = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
Z = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
LOGITS = np.random.default_rng(2).standard_normal((2, 4, 6)).astype(np.float32)
CODEBOOK_J, Z_J, LOGITS_J = map(jnp.asarray, (CODEBOOK, Z, LOGITS))


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
def test_codebook_vectors_are_the_embeddings_of_the_quantiser(quantizer):
    options = model_lib.VQGANOptions.defaults()
    options.update({"channels": 8, "multipliers": (1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4})
    options.quantizer.update(quantizer)
    part = quantize.build(quantize.QuantizerOptions.parse(options.quantizer, "model.quantizer"))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 3, part.inputs)).astype(np.float32))
    variables = nn.unbox(part.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, z, False, 1.0))
    vqgan_variables = {kind: {"quantizer": tree} for kind, tree in variables.items()}
    codebook = latents.codebook_vectors(model_lib.build(options), vqgan_variables)
    assert codebook.shape == (part.size, part.dim)
    codes = jnp.arange(part.size)[None, None]
    np.testing.assert_allclose(codebook, part.apply(variables, codes, method="embed")[0, 0], rtol=1e-6)
    # A vector of the codebook is quantized to itself.
    np.testing.assert_allclose(latents.quantize("straight", codebook[None], codebook, 1.0, None)[0], codebook, atol=1e-6)


def test_straight_quantizes_to_the_nearest_code_and_passes_gradients():
    nearest = np.array([[np.argmin(((z - CODEBOOK) ** 2).sum(1)) for z in row] for row in Z])
    quantized, pullback = jax.vjp(lambda z: latents.quantize("straight", z, CODEBOOK_J, 1.0, None), Z_J)
    np.testing.assert_allclose(quantized, CODEBOOK[nearest], atol=1e-6)
    g = np.random.default_rng(3).standard_normal(Z.shape).astype(np.float32)
    np.testing.assert_array_equal(pullback(g)[0], g)
    np.testing.assert_array_equal(latents.to_codes("straight", Z_J, CODEBOOK_J), nearest)
    np.testing.assert_array_equal(latents.quantize_greedily("straight", Z_J, CODEBOOK_J, 1.0), CODEBOOK[nearest])


def test_soft_is_the_mean_by_probabilities():
    for heat in (1.0, 0.3):
        p = np.exp(LOGITS / heat) / np.exp(LOGITS / heat).sum(-1, keepdims=True)
        for quantized in (
            latents.quantize("soft", LOGITS_J, CODEBOOK_J, heat, None),
            latents.quantize_greedily("soft", LOGITS_J, CODEBOOK_J, heat),
        ):
            np.testing.assert_allclose(quantized, p @ CODEBOOK, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(latents.quantize("soft", LOGITS_J, None, heat, None), p, rtol=1e-5)


def test_gumbel_samples_codes_by_their_probabilities():
    sample = jax.jit(jax.vmap(lambda key: latents.quantize("gumbel", LOGITS_J, None, 0.7, key)))
    samples = np.asarray(sample(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(np.sort(samples, axis=-1)[..., -1], 1, atol=1e-5)  # one code each
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    np.testing.assert_allclose(samples.mean(0), p, atol=0.03)
    likeliest = latents.quantize_greedily("gumbel", LOGITS_J, CODEBOOK_J, 1.0)
    np.testing.assert_array_equal(likeliest, CODEBOOK[LOGITS.argmax(-1)])
    # The gradient is that of the relaxed sample.
    key = jax.random.key(1)
    noisy = LOGITS + np.asarray(jax.random.gumbel(key, LOGITS.shape))
    relaxed = jax.vjp(lambda z: jax.nn.softmax(z / 0.7) @ CODEBOOK, noisy)[1]
    g = np.random.default_rng(4).standard_normal(Z.shape).astype(np.float32)
    actual = jax.vjp(lambda z: latents.quantize("gumbel", z, CODEBOOK_J, 0.7, key), LOGITS_J)[1](g)[0]
    np.testing.assert_allclose(actual, relaxed(g)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["straight", "soft", "gumbel"])
def test_a_start_shows_its_codes(kind):
    codes = np.array([[0, 5, 3], [2, 2, 1]], np.int32)
    z = latents.from_codes(kind, jnp.asarray(codes), CODEBOOK_J, 6)
    np.testing.assert_array_equal(latents.to_codes(kind, z, CODEBOOK_J), codes)
    if kind != "straight":
        probabilities = np.asarray(jax.nn.softmax(z))
        np.testing.assert_allclose(np.take_along_axis(probabilities, codes[..., None], axis=-1), 0.5, rtol=1e-5)


def test_vectors_stay_in_the_codebooks_range():
    low, high = CODEBOOK.min(0), CODEBOOK.max(0)
    np.testing.assert_allclose(latents.clip_to_codebook("straight", 5 * Z_J, CODEBOOK_J), np.clip(5 * Z, low, high))
    np.testing.assert_array_equal(latents.clip_to_codebook("soft", LOGITS_J, CODEBOOK_J), LOGITS)
