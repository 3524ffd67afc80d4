"""The latents that are optimised, and how they become the vectors that the decoder sees, for every quantiser and the dVAE:

    straight    vectors [h, w, d], each replaced by the nearest code, with the gradient of what it replaces (arXiv 1308.3432)
    soft        logits [h, w, K]: the mean of the codes, weighted by their probabilities
    gumbel      logits [h, w, K]: a code sampled at every step, with the gradient of the relaxed sample (arXiv 1611.01144)
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.dvae import DVAE
from vqgan_jax.model import Autoencoder
from vqgan_jax.quantize import nearest_codes

Codebook = Float[Array, "K d"] | None  # vectors of all codes; None: one-hot vectors, which are not stored


@functools.partial(jax.jit, static_argnums=0)
def codebook_vectors(module: Autoencoder, variables) -> Codebook:
    """The vector of every code; None for the dVAE, whose vectors are one-hot."""
    if isinstance(module, DVAE):
        return None
    codes = jnp.arange(module.quantizer.size)[None, None]
    return module.apply(variables, codes, method=lambda m, codes: m.quantizer.embed(codes))[0, 0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def from_codes(kind: str, codes: Int[Array, "*n h w"], codebook: Codebook, num_codes: int) -> Float[Array, "*n h w x"]:
    """Latents that show these codes; logits give each of them a probability of 1/2 at temperature 1."""
    if kind == "straight":
        return codebook[codes]
    return math.log(num_codes - 1) * jax.nn.one_hot(codes, num_codes)


def quantize(kind: str, z: Float[Array, "h w x"], codebook: Codebook, temperature, key) -> Float[Array, "h w d"]:
    """Vectors that the decoder sees while painting; `key` samples the codes of "gumbel"."""
    if kind == "straight":
        return z + jax.lax.stop_gradient(codebook[nearest_codes(z, codebook)] - z)
    if kind == "gumbel":
        z = z + jax.random.gumbel(key, z.shape)
    probabilities = jax.nn.softmax(z / temperature)
    if kind == "gumbel":
        sample = jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1])
        probabilities = probabilities + jax.lax.stop_gradient(sample - probabilities)
    return probabilities if codebook is None else probabilities @ codebook


def quantize_greedily(kind: str, z: Float[Array, "h w x"], codebook: Codebook, temperature) -> Float[Array, "h w d"]:
    """As `quantize`, of a finished painting: the likeliest code instead of a sampled one."""
    if kind == "soft":
        return quantize(kind, z, codebook, temperature, None)
    indices = codes(kind, z, codebook)
    return jax.nn.one_hot(indices, z.shape[-1]) if codebook is None else codebook[indices]


def codes(kind: str, z: Float[Array, "h w x"], codebook: Codebook) -> Int[Array, "h w"]:
    """The nearest codes of vectors, the likeliest of logits."""
    return nearest_codes(z, codebook) if kind == "straight" else jnp.argmax(z, axis=-1).astype(jnp.int32)


def clip_to_codebook(kind: str, z: Float[Array, "h w x"], codebook: Codebook) -> Float[Array, "h w x"]:
    """Clips vectors to each channel's range in the codebook; logits have none."""
    if kind != "straight":
        return z
    low, high = codebook.min(0)[None, None], codebook.max(0)[None, None]
    return jnp.clip(z, low, high)
