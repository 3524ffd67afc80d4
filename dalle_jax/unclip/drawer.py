"""The drawer of paintings whose pictures an unCLIP decodes: what is optimised is the decoder's image embedding z_i.

Gradients flow through the steps of DDIM, of which each is computed again in the backward pass.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.unclip.decoder_stage import DecoderStage
from dalle_jax.unclip.loading import load_unclip
from dalle_jax.unclip.samplers import make_steps
from dalle_jax.unclip.unclip import Unclip
from train_jax.data.images import Preprocess
from train_jax.errors import ConfigError, LoadError
from train_jax.options import option
from vqgan_jax.guided.drawers.drawer import Drawer, normal

_START = 0.2  # deviation of the first embedding, which is near the mean one: from afar, colours hardly change
_FLOOR = 1e-4  # least variance of a principal component, relative to the largest


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Drawer):
    """The image embedding of an unCLIP, in principal components of its training embeddings, which its decoder paints."""

    run: str = option("", "run directory of a decoder of unCLIP")
    steps: int = option(5, "steps of DDIM in which the decoder paints", least=2)

    def __post_init__(self):
        if not self.run:
            raise ConfigError("drawer = 'unclip' needs a decoder: name its run directory by drawer_options, run=DIR")

    is_scalable, runs = True, property(lambda self: (self.run,))

    @functools.cached_property
    def unclip(self) -> Unclip:
        """The loaded run. Raises ConfigError for what is no such run, and for more steps than it has timesteps."""
        try:
            unclip = load_unclip(self.run, dtype="float32")
        except LoadError as error:
            raise ConfigError(f"drawer = 'unclip', run = {self.run}: {error}") from error
        if unclip.moments is None:
            raise ConfigError(f"drawer = 'unclip', run = {self.run}: it has no moments of embeddings, which runs have")
        if self.steps > (timesteps := unclip.decoder.stage.diffusion.timesteps):
            raise ConfigError(f"drawer = 'unclip', steps = {self.steps}: it must be at most {timesteps}, as in training")
        return unclip

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        """Decoder, tokens of the empty text, and mean and scaled principal axes (columns) of the training embeddings."""
        mean, covariance = self.unclip.moments
        variances, axes = np.linalg.eigh(covariance.astype(np.float64))
        axes = axes * np.sqrt(np.maximum(variances, _FLOOR * variances[-1]))
        arrays = {"ids": self.unclip.tokenizer.encode([""]), "mean": mean, "axes": axes.astype(np.float32)}
        return arrays | {"decoder": self.unclip.decoder.variables}

    def without_weights(self):
        """Returns the drawer with the decoder's modules, for compiled programs."""
        return _Decoding(self.run, self.steps, self.unclip.decoder.stage)

    def init(self, size, seeds):
        """Draws an embedding near the mean one of training, and the noise from which its picture is painted."""
        if size[0] != size[1]:
            raise ConfigError(f"size = {size[0]} x {size[1]}: an unCLIP paints squares; set equal sides")
        noise = normal(seeds, (*2 * [self.unclip.decoder.stage.size], 3), 1.0, 1)
        return {"embedding": normal(seeds, self.weights["mean"].shape, _START), "noise": noise}

    def encode(self, size, images, z):
        """Encodes pictures as the embeddings of its CLIP, and as the noise from which DDIM paints them."""
        pictures = list(np.round(255 * np.clip(images, 0, 1)).astype(np.uint8))
        embeddings, decoder = self.unclip.embed(pictures), self.unclip.decoder
        pixels, ids = Preprocess(decoder.stage.size).batch(pictures), self.weights["ids"].repeat(len(pictures), 0)
        noise = decoder.invert(pixels, embeddings, ids, steps=self.steps, batch_size=len(pictures))
        deviations = np.linalg.solve(self.weights["axes"], (embeddings - self.weights["mean"]).T).T
        return {"embedding": deviations.astype(np.float32), "noise": noise}

    def render(self, z, context):
        """Decodes the embedding, as the drawer of compiled programs."""
        return self.without_weights().render(z, context)

    def regularise(self, z, context):
        """Mean square of the embedding's deviations, 1 for embeddings like those of training."""
        return jnp.mean(jnp.square(z["embedding"]))


@dataclasses.dataclass(frozen=True)
class _Decoding(ImageEmbedding):
    """The drawer as a key of compiled programs."""

    stage: DecoderStage | None = None

    def render(self, z, context):
        """Decodes the embedding from the noise, which stays."""
        weights, noise = context.weights, jax.lax.stop_gradient(z["noise"])
        embedding = weights["mean"] + weights["axes"] @ z["embedding"]
        predict = self.stage.make_predict(weights["decoder"], embedding[None], weights["ids"], weights["ids"][0])
        steps, keys = make_steps(self.stage.diffusion, self.steps), jax.random.key(0)[None]  # of noise that is scaled by 0
        pixels = self.stage.denoise(jax.checkpoint(predict), noise[None], keys, steps, ancestral=False)[0]
        return jax.image.resize((pixels + 1) / 2, (*context.size, 3), "cubic")
