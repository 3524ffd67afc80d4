"""Sampling from the decoder, and its inversion, as pure functions: embeddings and texts to pixels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int, UInt8

from clip_jax.text import TextTower
from dalle_jax.unclip.context import Context, ContextEncoder, make_inputs
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.samplers import (
    Predict,
    Steps,
    Update,
    draw_noise,
    guide,
    interleave,
    invert,
    make_ancestral_update,
    make_ddim_update,
    sample,
    sample_part,
)
from dalle_jax.unclip.text_features import encode_text
from dalle_jax.unclip.unet import UNet


@dataclasses.dataclass(frozen=True)
class DecoderStage:
    """The decoder with the text tower that it reads; weights are arguments.

    `variables` are `{"text": parameters of the tower, "decoder": {"context", "unet"}}`.
    """

    tower: TextTower
    context: ContextEncoder
    unet: UNet
    diffusion: Diffusion

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.unet.options.size

    def abstract_params(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of `variables["decoder"]`, without Flax's metadata boxes."""
        inputs = make_inputs(self.context.options, self.tower.options.text)
        context, variables = jax.eval_shape(self.context.init_with_output, jax.random.key(0), *inputs)
        x, t = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        unet = jax.eval_shape(self.unet.init, jax.random.key(0), x, t, Context(*context))
        return nn.unbox({"context": variables["params"], "unet": unet["params"]})

    def draw_noise(self, keys: jax.Array) -> Float32[Array, "b h w 3"]:
        """Draws the noise from which sampling starts, for each key."""
        return draw_noise(keys, self.diffusion.timesteps, (self.size, self.size, 3))

    def make_predict(
        self,
        variables: Mapping[str, Any],
        embeddings: Float[Array, "b dim"],
        ids: Int[Array, "b n"],
        null_ids: Int[Array, "n"],
        guidance: ArrayLike = 1.0,
        *,
        guided: bool = False,
    ) -> Predict:
        """Makes the network's function for a sampler.

        Args:
          embeddings: image embeddings, not normalised to unit length.
          ids, null_ids: tokens of the texts, and of the empty text.
          guided: whether guidance is computed, towards the empty text without an image embedding.
        """
        text = encode_text(self.tower, variables["text"], ids)
        rows = (embeddings, *text, jnp.zeros(len(ids), bool))
        if guided:
            null = encode_text(self.tower, variables["text"], null_ids[None])
            null = jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), null, text)
            rows = interleave(rows, (embeddings, *null, jnp.ones(len(ids), bool)))
        params = variables["decoder"]
        context = self.context.apply({"params": params["context"]}, *rows)

        def predict(x, t):
            return self.unet.apply({"params": params["unet"]}, x, t, context)

        return guide(predict, guidance) if guided else predict

    def denoise(
        self,
        predict: Predict,
        noise: Float32[Array, "b h w 3"],
        keys: jax.Array,
        steps: Steps,
        eta: ArrayLike = 0.0,
        *,
        ancestral: bool,
    ) -> Float32[Array, "b h w 3"]:
        """Samples pixels in [-1, 1] from noise: by ancestral sampling, or by DDIM with `eta`."""
        return jnp.clip(sample(predict, noise, keys, steps, self._make_update(eta, ancestral)), -1, 1)

    def denoise_part(
        self,
        predict: Predict,
        x: Float32[Array, "b h w 3"],
        keys: jax.Array,
        steps: Steps,
        eta: ArrayLike,
        start: ArrayLike,
        stop: ArrayLike,
        *,
        ancestral: bool,
    ) -> tuple[Float32[Array, "b h w 3"], Float32[Array, "b h w 3"]]:
        """Takes the steps [start, stop) of `denoise`; returns `x` and the pixels in [-1, 1] that the last one predicts."""
        x, x0 = sample_part(predict, x, keys, steps, self._make_update(eta, ancestral), start, stop)
        return x, jnp.clip(x0, -1, 1)

    def _make_update(self, eta: ArrayLike, ancestral: bool) -> Update:
        return make_ancestral_update(self.diffusion) if ancestral else make_ddim_update(self.diffusion, eta)

    def invert(
        self, predict: Predict, pixels: Float32[Array, "b h w 3"], steps: Steps
    ) -> Float32[Array, "b h w 3"]:
        """Encodes pixels in [-1, 1] as the noise from which DDIM with eta = 0 samples them."""
        return invert(predict, pixels, steps, self.diffusion)


def to_signed(images: UInt8[Array, "b h w 3"]) -> Float32[Array, "b h w 3"]:
    """Converts images to pixels in [-1, 1]."""
    return images.astype(jnp.float32) * (2 / 255) - 1


def to_uint8(pixels: Float32[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Converts pixels in [-1, 1] to images."""
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * (255 / 2)).astype(jnp.uint8)
