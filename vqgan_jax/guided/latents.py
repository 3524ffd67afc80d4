"""What is optimised, and how it becomes the vectors that the decoder sees. Works with every quantiser and the dVAE:

    straight    vectors [h, w, d], each replaced by the nearest code, with the gradient of what it replaces (arXiv 1308.3432)
    soft        logits [h, w, K]: the mean of the codes, by their probabilities
    gumbel      logits [h, w, K]: a code drawn in every step, with the gradient of the relaxed draw (arXiv 1611.01144)
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.dvae import DVAE
from vqgan_jax.model import Autoencoder
from vqgan_jax.quantize import nearest_codes

Table = Float[Array, "K d"] | None  # vectors of all codes; None: one-hot ones, which nobody needs to store


@functools.partial(jax.jit, static_argnums=0)
def table(module: Autoencoder, variables) -> Table:
    """The vector of every code."""
    if isinstance(module, DVAE):
        return None
    every = jnp.arange(module.quantizer.size)[None, None]
    return module.apply(variables, every, method=lambda m, codes: m.quantizer.embed(codes))[0, 0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def begin(kind: str, codes: Int[Array, "*n h w"], points: Table, size: int) -> Float[Array, "*n h w x"]:
    """Latents that show these codes, of `size`; those of probabilities give a code half of all at temperature 1."""
    if kind == "straight":
        return points[codes]
    return math.log(size - 1) * jax.nn.one_hot(codes, size)


def vectors(kind: str, z: Float[Array, "h w x"], points: Table, temperature, key) -> Float[Array, "h w d"]:
    """What the decoder sees while painting; `key` draws, of "gumbel"."""
    if kind == "straight":
        return z + jax.lax.stop_gradient(points[nearest_codes(z, points)] - z)
    if kind == "gumbel":
        z = z + jax.random.gumbel(key, z.shape)
    share = jax.nn.softmax(z / temperature)
    if kind == "gumbel":
        drawn = jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1])
        share = share + jax.lax.stop_gradient(drawn - share)
    return share if points is None else share @ points


def shown(kind: str, z: Float[Array, "h w x"], points: Table, temperature) -> Float[Array, "h w d"]:
    """What the decoder sees of a finished painting: as `vectors`, but the likeliest code instead of a drawn one."""
    if kind == "soft":
        return vectors(kind, z, points, temperature, None)
    found = codes(kind, z, points)
    return jax.nn.one_hot(found, z.shape[-1]) if points is None else points[found]


def codes(kind: str, z: Float[Array, "h w x"], points: Table) -> Int[Array, "h w"]:
    """The nearest, or the likeliest."""
    return nearest_codes(z, points) if kind == "straight" else jnp.argmax(z, axis=-1).astype(jnp.int32)


def bounded(kind: str, z: Float[Array, "h w x"], points: Table) -> Float[Array, "h w x"]:
    """After a step: vectors stay in each channel's range of the codebook; logits have none."""
    if kind != "straight":
        return z
    low, high = points.min(0)[None, None], points.max(0)[None, None]
    return jnp.clip(z, low, high)
