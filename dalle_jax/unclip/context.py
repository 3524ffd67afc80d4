"""The condition of the decoder: embeddings and text states of CLIP as a time embedding and context tokens.

The scheme is that of arXiv 2204.06125, section 2.1: the embeddings are added to the time embedding, and the image embedding
becomes further tokens, before those of the text.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dalle_jax.unclip.options import DecoderOptions
from nn_jax.layers import Dense, layer_norm, with_axis_names
from train_jax.compute import Compute


class Context(NamedTuple):
    """Condition of a U-Net.

    Attributes:
      embedding: vector that is added to the time embedding.
      tokens: tokens to which pixels attend, where `mask` is True.
    """

    embedding: Float[Array, "b e"]
    tokens: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]


class ContextEncoder(nn.Module):
    """Projects embeddings and text states to a `Context`. Parameter `null_image`: the embedding of no image."""

    options: DecoderOptions
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        image_embedding: Float[Array, "b dim"],
        text_embedding: Float[Array, "b dim"],
        text_states: Float[Array, "b n text_width"],
        text_mask: Bool[Array, "b n"],
        image_is_dropped: Bool[Array, "b"],
    ) -> Context:
        """Makes the context of each row.

        Args:
          image_embedding, text_embedding: embeddings of CLIP, not normalised to unit length.
          text_states, text_mask: as in `dalle_jax.unclip.prior_networks.PriorTransformer`. No text is the empty text.
          image_is_dropped: rows without an image embedding, as classifier-free guidance needs.
        """
        options, dtype = self.options, self.compute.array_dtype
        dim = image_embedding.shape[-1]
        null = self.param("null_image", with_axis_names(nn.initializers.zeros_init(), "norm"), (dim,))
        image_embedding = jnp.where(image_is_dropped[:, None], null[None], image_embedding)

        def project(value, features: tuple[int, ...], name: str):
            axes = ("proj", "embed", "length")[: 1 + len(features)]
            return Dense(features, axes, value.shape[-1] ** -0.5, dtype, name=name)(value)

        embed_width = (4 * options.channels[0],)
        embedding = project(image_embedding, embed_width, "image_embedding")
        embedding += project(text_embedding, embed_width, "text_embedding")
        # Features are channels by tokens, as in the public weights.
        image_tokens = project(image_embedding, (options.context_dim, options.image_tokens), "image_tokens")
        text_tokens = layer_norm(1e-5, dtype, "text_norm")(project(text_states, (options.context_dim,), "text_states"))
        tokens = jnp.concatenate([image_tokens.swapaxes(1, 2), text_tokens], axis=1)
        mask = jnp.pad(text_mask, ((0, 0), (options.image_tokens, 0)), constant_values=True)
        return Context(embedding, tokens, mask)


def make_inputs(options: DecoderOptions, text: Any) -> tuple:
    """Makes inputs of the context encoder for one example: zeros. `text` are CLIP's `TextOptions`."""
    embedding, length = jnp.zeros((1, options.embed_dim)), text.context_length
    states = jnp.zeros((1, length, text.width))
    return embedding, embedding, states, jnp.ones((1, length), bool), jnp.zeros(1, bool)
