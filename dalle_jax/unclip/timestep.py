"""Embedding of timesteps (arXiv 2006.11239, appendix B)."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from nn_jax.layers import Dense

_LONGEST_PERIOD = 10_000.0


def sinusoid(t: Int[Array, "b"], width: int) -> Float32[Array, "b width"]:
    """Computes cosines, then sines, of t times `width / 2` frequencies from 1 to 1 / 10,000 (exclusive)."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(_LONGEST_PERIOD)) / np.float32(half))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Embeds timesteps as vectors of size `features`: two dense layers on the sinusoid of size `width`."""

    width: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, t: Int[Array, "b"]) -> Float[Array, "b features"]:
        """Embeds timesteps."""
        x = sinusoid(t, self.width)
        x = nn.silu(Dense((self.features,), ("proj", "mlp"), self.width**-0.5, self.dtype, name="dense1")(x))
        return Dense((self.features,), ("mlp", "embed"), self.features**-0.5, self.dtype, name="dense2")(x)
