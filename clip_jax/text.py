"""The text tower: a transformer that is read at one token (arXiv 2103.00020, section 2.4; arXiv 2303.15343)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nn_jax.layers import Dense, add_parameter, embedding_lookup, layer_norm, with_axis_names
from nn_jax.transformer import Transformer

POOLS = ("eos", "argmax", "last")


class TextTower(nn.Module):
    """Token ids -> features of width `embed_dim`, float32.

    Attributes:
      eos_id: the end-of-text token. Every row must hold it where `pool` is "eos"; the tokenizers see to it.
      causal: whether a token sees only what comes before it. Then padding of any kind is harmless; a bidirectional
        tower sees the padding it was trained with as a part of the text.
      pool: where the text is read: at the *first* end-of-text token ("eos"), at the first of the largest ids
        ("argmax", as OpenAI's code does), or at the last place of the row ("last").
      proj_bias: whether the final linear map has a bias.
      blocks: options of `Transformer`.
    """

    vocab_size: int
    context_length: int
    width: int
    embed_dim: int
    eos_id: int
    causal: bool
    pool: str
    proj_bias: bool
    eps: float
    dtype: DTypeLike
    blocks: Mapping[str, Any]

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch embed_dim"]:
        table = self.param(
            "tokens", with_axis_names(nn.initializers.normal(0.02), "vocab", "embed"), (self.vocab_size, self.width)
        )
        positions = self.param(
            "positions", with_axis_names(nn.initializers.normal(0.01), "length", "embed"), (self.context_length, self.width)
        )
        x = add_parameter(embedding_lookup(table, ids).astype(self.dtype), positions[: ids.shape[1]])
        x = nn.with_logical_constraint(x, ("batch", None, None))
        options = {"eps": self.eps, "causal": self.causal, "dtype": self.dtype, "name": "transformer"}
        x = Transformer(self.width, **self.blocks, **options)(x, None, deterministic)
        if self.pool == "last":
            x = x[:, -1]
        else:
            end = jnp.argmax(ids == self.eos_id if self.pool == "eos" else ids, axis=1)
            x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = layer_norm(self.eps, self.dtype, "norm_post")(x)
        std = self.width**-0.5
        options = {"bias": self.proj_bias, "out_dtype": jnp.float32, "name": "proj"}
        return Dense((self.embed_dim,), ("embed", "proj"), std, self.dtype, **options)(x)
