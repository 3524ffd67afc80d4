"""Text tower: a transformer pooled at one token (arXiv 2103.00020, section 2.4; arXiv 2303.15343)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.options import CLIPOptions
from nn_jax.layers import Dense, add_parameter, embedding_lookup, layer_norm, with_axis_names
from nn_jax.transformer import Transformer
from train_jax.compute import TransformerCompute


class TextTower(nn.Module):
    """Text transformer: encodes token ids as float32 features of width `embed_dim`.

    A causal tower ignores padding after the end of a text. A bidirectional tower attends to padding, so padding must be
    as in training.

    Attributes:
      eos_id: end-of-text token. With the pool "eos" every row must contain it; the tokenizers guarantee that.
      dropout: dropout rate in the blocks during training.
    """

    options: CLIPOptions
    eos_id: int
    compute: TransformerCompute
    dropout: float

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch embed_dim"]:
        text, eps, dtype = self.options.text, self.options.eps, self.compute.array_dtype
        init = with_axis_names(nn.initializers.normal(0.02), "vocab", "embed")
        table = self.param("tokens", init, (text.vocab_size, text.width))
        init = with_axis_names(nn.initializers.normal(0.01), "length", "embed")
        positions = self.param("positions", init, (text.context_length, text.width))
        x = add_parameter(embedding_lookup(table, ids).astype(dtype), positions[: ids.shape[1]])
        x = nn.with_logical_constraint(x, ("batch", None, None))
        attributes = {"mlp_ratio": text.mlp_ratio, "activation": self.options.activation, "eps": eps}
        attributes |= {"dropout": self.dropout, "causal": text.causal, **self.compute.transformer}
        x = Transformer(text.width, text.depth, text.heads, **attributes, name="transformer")(x, (), deterministic)
        if text.pool == "last":
            x = x[:, -1]
        else:
            end = find_ends(ids, text.pool, self.eos_id)
            x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = layer_norm(eps, dtype, "norm_post")(x)
        options = {"bias": text.proj_bias, "out_dtype": jnp.float32, "name": "proj"}
        return Dense((self.options.embed_dim,), ("embed", "proj"), text.width**-0.5, dtype, **options)(x)


def find_ends(ids: Int[Array, "batch length"], pool: str, eos_id: int) -> Int[Array, "batch"]:
    """Finds the position of the end token of each text, by the pool "eos" or "argmax"."""
    return jnp.argmax(ids == eos_id if pool == "eos" else ids, axis=1)
