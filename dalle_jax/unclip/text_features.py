"""What the networks of unCLIP read of a text: the outputs of CLIP's text tower."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from clip_jax.text import TextTower, mask_padding


class TextFeatures(NamedTuple):
    """Outputs of the text tower, in the order of the networks' arguments.

    Attributes:
      embedding: embedding of the text, not normalised to unit length.
      states: output for each token, after the last layer norm.
      mask: True from the begin token to the end token; everywhere but at its `pad_id` for a tower without end token.
    """

    embedding: Float[Array, "b dim"]
    states: Float[Array, "b n width"]
    mask: Bool[Array, "b n"]


def encode_text(tower: TextTower, params: Any, ids: Int[Array, "b n"]) -> TextFeatures:
    """Encodes token ids with the parameters of the text tower."""
    embedding, states = tower.apply({"params": params}, ids, method="encode_tokens")
    text = tower.options.text
    has_end = text.pad_id < 0 and text.pool not in ("last", "mean")
    mask = mask_padding(ids, text.pool, tower.eos_id) if has_end else ids != text.pad_id
    return TextFeatures(embedding, states, mask)
