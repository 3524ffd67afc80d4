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
    p = probabilities(kind, z, codebook, temperature, key)
    return p if codebook is None else p @ codebook


def probabilities(
    kind: str, z: Float[Array, "h w x"], codebook: Codebook, temperature, key, spacing: Float[Array, ""] | None = None
) -> Float[Array, "h w k"]:
    """Returns the probabilities of the codes of latents, differentiably: of vectors, one-hot.

    The gradient to vectors is that of a softmax of negative squared distances in units of `spacing`.

    Args:
      spacing: see `code_spacing`; only for "straight".
    """
    if kind == "straight":
        # By products: differences of all vectors and codes would need gigabytes for large codebooks.
        squares = jnp.sum(z**2, axis=-1, keepdims=True) + jnp.sum(codebook**2, axis=-1)[None, None]
        distances = squares - 2 * jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)
        return _straight_through(jax.nn.softmax(-distances / spacing), nearest_codes(z, codebook))
    if kind == "gumbel":
        z = z + jax.random.gumbel(key, z.shape)
    p = jax.nn.softmax(z / temperature)
    return _straight_through(p, jnp.argmax(z, axis=-1)) if kind == "gumbel" else p


@jax.jit
def code_spacing(codebook: Float[Array, "K d"]) -> Float[Array, ""]:
    """Computes the mean squared distance of a code's vector to the nearest other one."""

    def nearest(index):
        distances = jnp.sum((codebook - codebook[index][None]) ** 2, axis=-1)
        return jnp.min(jnp.where(distances > 0, distances, jnp.inf))

    return jnp.mean(jax.lax.map(nearest, jnp.arange(len(codebook))))


def _straight_through(p: Float[Array, "h w k"], codes: Int[Array, "h w"]) -> Float[Array, "h w k"]:
    """Returns one-hot codes with the gradient of probabilities (arXiv 1308.3432)."""
    return p + jax.lax.stop_gradient(jax.nn.one_hot(codes, p.shape[-1]) - p)


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
