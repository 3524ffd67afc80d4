"""Sampling from the prior, as a pure function: token ids to CLIP image embeddings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int, UInt32

from clip_jax.text import TextTower
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.prior_model import DiffusionPrior, EmbeddingStatistics, LinearPrior
from dalle_jax.unclip.samplers import Steps, draw_noise, guide, interleave, make_ancestral_update, sample
from dalle_jax.unclip.text_features import encode_text


def make_keys(seeds: UInt32[Array, "b 3"], stage: int) -> jax.Array:
    """Makes a random key [b] of each row `(seed, hash of the condition, number of the sample)`; each stage has its own."""

    def make_key(row):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(row[0]), row[1]), row[2])
        return jax.random.fold_in(key, stage)

    return jax.vmap(make_key)(seeds)


@dataclasses.dataclass(frozen=True)
class PriorStage:
    """The prior with the text tower that it reads; weights are arguments.

    `variables` are `{"text": parameters of the tower, "prior": parameters of the module, "mean", "std": statistics}`.
    """

    tower: TextTower
    module: DiffusionPrior | LinearPrior
    diffusion: Diffusion

    @property
    def is_deterministic(self) -> bool:
        """Whether the same text always has the same embedding."""
        return self.module.options.type == "linear"

    def draw(
        self,
        variables: Mapping[str, Any],
        ids: Int[Array, "b n"],
        null_ids: Int[Array, "n"],
        keys: jax.Array,
        steps: Steps,
        guidance: ArrayLike,
        *,
        guided: bool,
        candidates: int,
    ) -> Float32[Array, "b dim"]:
        """Samples an image embedding for each text, in CLIP's units.

        Args:
          null_ids: tokens of the empty text.
          steps: table of the sampler; not used by a prior of one step.
          guided: whether guidance is computed; `guidance` is its scale.
          candidates: number of samples, of which the one with the largest z_i . z_t is kept (arXiv 2204.06125, section
            2.2).
        """
        text = encode_text(self.tower, variables["text"], ids)
        rows = jax.tree.map(lambda x: jnp.repeat(x, candidates, axis=0), text)
        if guided:
            null = encode_text(self.tower, variables["text"], null_ids[None])
            null = jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), null, rows)
            rows = interleave(rows, null)

        def predict(x, t):
            return self.module.apply({"params": variables["prior"]}, x, t, *rows)

        predict = guide(predict, guidance) if guided else predict
        keys = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(candidates)))(keys).reshape(-1)
        x = draw_noise(keys, self.diffusion.timesteps, (self.module.options.embed_dim,))
        if self.module.options.is_diffusion:
            x0 = sample(predict, x, keys, steps, make_ancestral_update(self.diffusion))
        else:
            x0 = predict(x, jnp.zeros(len(x), jnp.int32))
        embeddings = EmbeddingStatistics(variables["mean"], variables["std"]).restore(x0)
        embeddings = embeddings.reshape(len(ids), candidates, -1)
        best = jnp.argmax(jnp.einsum("bcd,bd->bc", embeddings, text.embedding), axis=1)
        return jnp.take_along_axis(embeddings, best[:, None, None], axis=1)[:, 0]
