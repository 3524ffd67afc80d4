"""Sampling from the prior, as a pure function: token ids to CLIP image embeddings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int, UInt32

from clip_jax.text import TextTower
from dalle_jax.unclip.prior_model import PriorModel
from dalle_jax.unclip.samplers import Steps
from dalle_jax.unclip.text_features import encode_text

PRIOR_STAGE, DECODER_STAGE, UPSAMPLER_STAGE = range(3)  # of `make_keys`


def make_keys(seeds: UInt32[Array, "b 3"], stage: int) -> jax.Array:
    """Makes a random key [b] of each row `(seed, hash of the condition, number of the sample)`; each stage has its own."""

    def make_key(row):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(row[0]), row[1]), row[2])
        return jax.random.fold_in(key, stage)

    return jax.vmap(make_key)(seeds)


@dataclasses.dataclass(frozen=True)
class PriorStage:
    """The prior with the text tower that it reads; weights are arguments.

    `variables` are `{"text": parameters of the tower, "prior": parameters of the model}` and the statistics of the model.
    """

    tower: TextTower
    model: PriorModel

    def draw(
        self,
        variables: Mapping[str, Any],
        ids: Int[Array, "b n"],
        null_ids: Int[Array, "n"],
        keys: jax.Array,
        steps: Steps | None,
        guidance: ArrayLike,
        *,
        guided: bool,
        candidates: int,
    ) -> Float32[Array, "b dim"]:
        """Samples an image embedding for each text, in CLIP's units.

        Args:
          null_ids: tokens of the empty text.
          steps: table of `PriorModel.make_steps`.
          guided: whether guidance is computed; `guidance` is its scale.
          candidates: number of samples, of which the one with the largest z_i . z_t is kept (arXiv 2204.06125, section
            2.2).
        """
        text = encode_text(self.tower, variables["text"], ids)
        null = encode_text(self.tower, variables["text"], null_ids[None]) if guided else None
        keys = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(candidates)))(keys).reshape(-1)
        x = self.model.sample(variables["prior"], text, null, keys, steps, guidance)
        embeddings = self.model.restore(variables, x).reshape(len(ids), candidates, -1)
        best = jnp.argmax(jnp.einsum("bcd,bd->bc", embeddings, text.embedding), axis=1)
        return jnp.take_along_axis(embeddings, best[:, None, None], axis=1)[:, 0]
