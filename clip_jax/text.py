"""Text tower: a transformer pooled at one token (arXiv 2103.00020, section 2.4; arXiv 2303.15343)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.options import CLIPOptions
from clip_jax.projection import project
from nn_jax.layers import add_parameter, embedding_lookup, layer_norm, with_axis_names
from nn_jax.transformer import Transformer
from train_jax.compute import TransformerCompute


class TextTower(nn.Module):
    """Text transformer: encodes token ids as float32 features of width `embed_dim`.

    A causal tower ignores padding after the end of a text. A bidirectional tower attends to padding, so padding must be
    as in training, unless it is the token `pad_id` of the options.

    Attributes:
      eos_id: end-of-text token. With the pool "eos" every row must contain it; the tokenizers guarantee that.
      dropout: dropout rate in the blocks during training.
    """

    options: CLIPOptions
    eos_id: int
    compute: TransformerCompute
    dropout: float

    def __call__(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch embed_dim"]:
        """Encodes token ids; the features are not normalised."""
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
        has_class_token = text.pool == "cls"
        positions = self.param("positions", init, (text.context_length + has_class_token, text.width))
        x, mask = embedding_lookup(table, ids).astype(dtype), None
        if has_class_token:
            init = with_axis_names(nn.initializers.normal(0.01), "embed")
            token = self.param("cls", init, (text.width,)).astype(dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(token, (x.shape[0], 1, text.width))], axis=1)
            mask = mask_as_coca(ids)
        elif text.pad_id >= 0:
            mask = (ids != text.pad_id)[:, None, None]
        x = add_parameter(x, positions[: x.shape[1]])
        is_post_norm = text.branch_norms == "post"
        if is_post_norm:
            x = layer_norm(eps, dtype, "norm_pre")(x)
        x = nn.with_logical_constraint(x, ("batch", None, None))
        attributes = {"mlp_ratio": text.mlp_ratio, "activation": activation, "eps": eps}
        attributes |= {"dropout": self.dropout, "causal": text.causal, "branch_norms": text.branch_norms}
        attributes |= {"qk_norm": text.qk_norm, **self.compute.transformer}
        x = Transformer(text.width, text.depth, text.heads, **attributes, name="transformer")(x, (), deterministic, mask)
        if text.pool in ("last", "cls"):
            pooled = x[:, -1]
            x = x[:, : ids.shape[1]]
        elif text.pool == "first":
            pooled = x[:, 0]
        elif text.pool == "mean":
            pooled = jnp.mean(x, axis=1, where=(ids != text.pad_id)[:, :, None])
        else:
            end = find_ends(ids, text.pool, self.eos_id)
            pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        norm = (lambda x: x) if is_post_norm else layer_norm(eps, dtype, "norm_post")
        if not text.proj:
            return norm(pooled).astype(jnp.float32), norm(x)
        options = {"hidden": text.proj_hidden, "hidden_bias": False, "bias": text.proj_bias}
        return project(norm(pooled), self.options.embed_dim, dtype, **options), norm(x)


def mask_as_coca(ids: Int[Array, "batch length"]) -> Bool[Array, "batch 1 1 length+1"]:
    """Returns the mask of the tokens that may be attended to, where a class token follows each text, padded with 0.

    It is open_clip's: shifted by one token, so that the first padding is attended to, and the class token only after a text
    without padding. The published weights of CoCa were trained with it.
    """
    return jnp.pad(ids != 0, ((0, 0), (1, 0)), constant_values=True)[:, None, None]


def find_ends(ids: Int[Array, "batch length"], pool: str, eos_id: int) -> Int[Array, "batch"]:
    """Finds the position of the end token of each text: the first one with the pool "eos", else the largest id."""
    return jnp.argmax(ids == eos_id if pool == "eos" else ids, axis=1)


def mask_padding(ids: Int[Array, "batch length"], pool: str, eos_id: int) -> Bool[Array, "batch length"]:
    """Returns the mask of the tokens of each text: those up to its end token, which may also be the padding."""
    return jnp.arange(ids.shape[1])[None] <= find_ends(ids, pool, eos_id)[:, None]
