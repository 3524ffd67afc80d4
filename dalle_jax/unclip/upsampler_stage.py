"""Sampling from an upsampler, as a pure function: small images to larger ones (arXiv 2204.06125, section 2.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.samplers import Steps, draw_noise, make_ancestral_update, sample
from dalle_jax.unclip.unet import UNet


@dataclasses.dataclass(frozen=True)
class UpsamplerStage:
    """An upsampler; weights are arguments: `{"upsampler"}`, and `{"last"}` of a network of its own for the last step.

    Attributes:
      size: side of the large images in pixels.
      has_last: whether the last step has a network of its own.
    """

    unet: UNet
    diffusion: Diffusion
    size: int
    has_last: bool = False

    def abstract_params(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the parameters of a network, without Flax's metadata boxes."""
        size = self.unet.options.size
        x, t = jax.ShapeDtypeStruct((1, size, size, 6), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        return nn.unbox(jax.eval_shape(self.unet.init, jax.random.key(0), x, t))["params"]

    def draw(
        self, variables: Mapping[str, Any], small: Float32[Array, "b h w 3"], keys: jax.Array, steps: Steps
    ) -> Float32[Array, "b H W 3"]:
        """Samples large images of small ones; both are pixels in [-1, 1]."""
        upscaled = resize(small, self.size)
        update = make_ancestral_update(self.diffusion)

        def with_small(params):
            return lambda x, t: self.unet.apply({"params": params}, jnp.concatenate([x, upscaled], axis=-1), t)

        x = draw_noise(keys, self.diffusion.timesteps, upscaled.shape[1:])
        if not self.has_last:
            return jnp.clip(sample(with_small(variables["upsampler"]), x, keys, steps, update), -1, 1)
        first, last = (jax.tree.map(lambda column, part=part: column[part], steps) for part in (np.s_[:-1], np.s_[-1:]))
        x = sample(with_small(variables["upsampler"]), x, keys, first, update)
        return jnp.clip(sample(with_small(variables["last"]), x, keys, last, update), -1, 1)


def resize(pixels: Float32[Array, "b h w c"], size: int) -> Float32[Array, "b size size c"]:
    """Resizes images to squares by antialiased bicubic interpolation."""
    return jax.image.resize(pixels, (len(pixels), size, size, pixels.shape[-1]), "cubic")
