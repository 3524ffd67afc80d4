"""The text tower: a causal transformer that is read at the end of the text (arXiv 2103.00020, section 2.4)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nn_jax.layers import Dense, layer_norm, named
from nn_jax.transformer import Transformer, causal_mask


class TextTower(nn.Module):
    """Token ids -> features of width `embed_dim`, read at the *first* end-of-text token.

    What follows that token cannot be seen from it, so padding of any kind is harmless. Every row must hold the token
    `eos_id`; `train_jax.data.text.Tokenizer` sees to it.
    """

    vocab_size: int
    context_length: int
    width: int
    embed_dim: int
    eos_id: int
    eps: float
    dtype: DTypeLike
    blocks: Mapping[str, Any]

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch embed_dim"]:
        table = self.param(
            "tokens", named(nn.initializers.normal(0.02), "vocab", "embed"), (self.vocab_size, self.width)
        )
        positions = self.param(
            "positions", named(nn.initializers.normal(0.01), "length", "embed"), (self.context_length, self.width)
        )
        x = jnp.take(table, ids, axis=0).astype(self.dtype) + positions[: ids.shape[1]].astype(self.dtype)[None]
        x = nn.with_logical_constraint(x, ("batch", None, None))
        x = Transformer(self.width, **self.blocks, eps=self.eps, dtype=self.dtype, name="transformer")(
            x, causal_mask(ids.shape[1]), deterministic
        )
        end = jnp.argmax(ids == self.eos_id, axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = layer_norm(self.eps, self.dtype, "norm_post")(x)
        std = self.width**-0.5
        return Dense((self.embed_dim,), ("embed", "proj"), std, self.dtype, bias=False, name="proj")(x)
