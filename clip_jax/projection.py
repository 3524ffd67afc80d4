"""The last layers of a tower, which map its features to the space of the embeddings."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from nn_jax.layers import ACTIVATIONS, Dense


def project(
    x: Float[Array, "... width"],
    embed_dim: int,
    dtype: DTypeLike,
    *,
    bias: bool = False,
    hidden: int = 0,
    hidden_bias: bool = True,
) -> Float32[Array, "... embed_dim"]:
    """Projects features, in the module that calls it; its parameters are `proj` and, with a hidden layer, `proj_hidden`.

    Args:
      hidden: width of a hidden layer with GELU; 0: there is none.
      hidden_bias: whether the hidden layer has a bias.
    """
    if hidden:
        options = {"bias": hidden_bias, "name": "proj_hidden"}
        x = ACTIVATIONS["gelu"](Dense((hidden,), ("embed", "mlp"), x.shape[-1] ** -0.5, dtype, **options)(x))
    options = {"bias": bias, "out_dtype": jnp.float32, "name": "proj"}
    axes = ("mlp" if hidden else "embed", "proj")
    return Dense((embed_dim,), axes, x.shape[-1] ** -0.5, dtype, **options)(x)
