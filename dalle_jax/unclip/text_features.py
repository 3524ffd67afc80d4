"""What the networks of unCLIP read of a text: the outputs of CLIP's text tower."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.text import TextTower, mask_padding


class TextFeatures(NamedTuple):
    """Outputs of the text tower, in the order of the networks' arguments.

    Attributes:
      embedding: embedding of the text, not normalised to unit length.
      states: output for each token, after the last layer norm.
      mask: True from the begin token to the end token; everywhere for a tower that attends to padding.
    """

    embedding: Float[Array, "b dim"]
    states: Float[Array, "b n width"]
    mask: Bool[Array, "b n"]


def encode_text(tower: TextTower, params: Any, ids: Int[Array, "b n"]) -> TextFeatures:
    """Encodes token ids with the parameters of the text tower."""
    embedding, states = tower.apply({"params": params}, ids, method="encode_tokens")
    pool = tower.options.text.pool
    mask = jnp.ones(ids.shape, bool) if pool == "last" else mask_padding(ids, pool, tower.eos_id)
    return TextFeatures(embedding, states, mask)
