"""Optimised latents and their quantisation to the decoder's input, for every quantiser and the dVAE:

    straight    vectors [h, w, d], quantised to the nearest codes with a straight-through gradient (arXiv 1308.3432)
    soft        logits [h, w, K]: the expected code vector under their softmax
    gumbel      logits [h, w, K]: straight-through Gumbel-softmax, sampled at every step (arXiv 1611.01144)
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.dvae import DVAE
from vqgan_jax.model import Autoencoder
from vqgan_jax.quantize import nearest_codes

Codebook = Float[Array, "K d"] | None  # vectors of all codes; None: one-hot vectors, implicit


@functools.partial(jax.jit, static_argnums=0)
def codebook_vectors(module: Autoencoder, variables) -> Codebook:
    """Returns the vectors of all codes; None for the dVAE, whose vectors are one-hot."""
    if isinstance(module, DVAE):
        return None
    codes = jnp.arange(module.quantizer.size)[None, None]
    return module.apply(variables, codes, method=lambda m, codes: m.quantizer.embed(codes))[0, 0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def from_codes(kind: str, codes: Int[Array, "*n h w"], codebook: Codebook, num_codes: int) -> Float[Array, "*n h w x"]:
    """Returns latents that are quantised to `codes`. Logits give each code a probability of 1/2 at temperature 1."""
    if kind == "straight":
        return codebook[codes]
    return math.log(num_codes - 1) * jax.nn.one_hot(codes, num_codes)


def quantize(kind: str, z: Float[Array, "h w x"], codebook: Codebook, temperature, key) -> Float[Array, "h w d"]:
    """Quantises latents to the decoder's input, differentiably. `key` is the noise of "gumbel"."""
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
    """Quantises latents as `quantize`, but with the most likely code instead of a sampled one."""
    if kind == "soft":
        return quantize(kind, z, codebook, temperature, None)
    indices = to_codes(kind, z, codebook)
    return jax.nn.one_hot(indices, z.shape[-1]) if codebook is None else codebook[indices]


def to_codes(kind: str, z: Float[Array, "h w x"], codebook: Codebook) -> Int[Array, "h w"]:
    """Returns the nearest codes of vectors, or the most likely codes of logits."""
    return nearest_codes(z, codebook) if kind == "straight" else jnp.argmax(z, axis=-1).astype(jnp.int32)


def clip_to_codebook(kind: str, z: Float[Array, "h w x"], codebook: Codebook) -> Float[Array, "h w x"]:
    """Clips vectors to the range of each channel in the codebook. Logits are returned unchanged."""
    if kind != "straight":
        return z
    low, high = codebook.min(0)[None, None], codebook.max(0)[None, None]
    return jnp.clip(z, low, high)
