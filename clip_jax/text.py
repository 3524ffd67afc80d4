"""Text tower: a transformer pooled at one token (arXiv 2103.00020, section 2.4; arXiv 2303.15343)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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

    def __call__(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch embed_dim"]:
        return self.encode_tokens(ids, deterministic)[0]

    @nn.compact
    def encode_tokens(
        self, ids: Int[Array, "batch length"], deterministic: bool = True
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch length width"]]:
        """Encodes token ids as features, and each token as its output after the last layer norm."""
        text, dtype = self.options.text, self.compute.array_dtype
        eps, activation = text.eps or self.options.eps, text.activation or self.options.activation
        init = with_axis_names(nn.initializers.normal(0.02), "vocab", "embed")
        table = self.param("tokens", init, (text.vocab_size, text.width))
        init = with_axis_names(nn.initializers.normal(0.01), "length", "embed")
        positions = self.param("positions", init, (text.context_length, text.width))
        x = add_parameter(embedding_lookup(table, ids).astype(dtype), positions[: ids.shape[1]])
        x = nn.with_logical_constraint(x, ("batch", None, None))
        attributes = {"mlp_ratio": text.mlp_ratio, "activation": activation, "eps": eps}
        attributes |= {"dropout": self.dropout, "causal": text.causal, **self.compute.transformer}
        x = Transformer(text.width, text.depth, text.heads, **attributes, name="transformer")(x, (), deterministic)
        if text.pool == "last":
            pooled = x[:, -1]
        else:
            end = find_ends(ids, text.pool, self.eos_id)
            pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        norm = layer_norm(eps, dtype, "norm_post")
        if not text.proj:
            return norm(pooled).astype(jnp.float32), norm(x)
        options = {"bias": text.proj_bias, "out_dtype": jnp.float32, "name": "proj"}
        proj = Dense((self.options.embed_dim,), ("embed", "proj"), text.width**-0.5, dtype, **options)
        return proj(norm(pooled)), norm(x)


def find_ends(ids: Int[Array, "batch length"], pool: str, eos_id: int) -> Int[Array, "batch"]:
    """Finds the position of the end token of each text, by the pool "eos" or "argmax"."""
    return jnp.argmax(ids == eos_id if pool == "eos" else ids, axis=1)


def mask_padding(ids: Int[Array, "batch length"], pool: str, eos_id: int) -> Bool[Array, "batch length"]:
    """Returns the mask of the tokens of each text: those up to its end token, which may also be the padding."""
    return jnp.arange(ids.shape[1])[None] <= find_ends(ids, pool, eos_id)[:, None]
