"""DALL-E's discrete VAE (arXiv 2102.12092, section 2.1 and appendix A), for inference with OpenAI's weights.

The interface is the same as that of `vqgan_jax.model.VQGAN`: pixels in [-1, 1], codes, vectors. A vector is a distribution
over codes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nn_jax.convolution import Conv, upsample_nearest

_EPS = 0.1  # pixels in [0, 1] are mapped to [0.1, 0.9]
_GROUPS = 4


class _Block(nn.Module):
    """Residual block x + post_gain * f(x), where f has four convolutions, each preceded by a ReLU."""

    features: int
    kernels: tuple[int, int, int, int]
    post_gain: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        y = x
        widths = (*(self.features // 4,) * 3, self.features)
        for index, (width, kernel) in enumerate(zip(widths, self.kernels, strict=True), 1):
            y = _conv(width, kernel, self.dtype, f"conv{index}")(nn.relu(y))
        shortcut = x if x.shape[-1] == self.features else _conv(self.features, 1, self.dtype, "shortcut")(x)
        return shortcut + self.post_gain * y


def _conv(features: int, window: int, dtype: DTypeLike, name: str, out_dtype: DTypeLike | None = None) -> Conv:
    return Conv(features, window, dtype, std="he", out_dtype=out_dtype, name=name)


class _Encoder(nn.Module):
    num_codes: int
    n_hid: int
    blocks: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        x = _conv(self.n_hid, 7, self.dtype, "conv_in")(x)
        for group in range(_GROUPS):
            for index in range(self.blocks):
                post_gain = (_GROUPS * self.blocks) ** -2
                x = _Block(self.n_hid << group, (3, 3, 3, 1), post_gain, self.dtype, name=f"group{group}_block{index}")(x)
            if group < _GROUPS - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return _conv(self.num_codes, 1, self.dtype, "conv_out", jnp.float32)(nn.relu(x))


class _Decoder(nn.Module):
    n_hid: int
    blocks: int
    n_init: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, p):
        x = _conv(self.n_init, 1, self.dtype, "conv_in")(p)
        for group in range(_GROUPS):
            for index in range(self.blocks):
                post_gain, width = (_GROUPS * self.blocks) ** -2, self.n_hid << (_GROUPS - 1 - group)
                x = _Block(width, (1, 3, 3, 3), post_gain, self.dtype, name=f"group{group}_block{index}")(x)
            if group < _GROUPS - 1:
                x = upsample_nearest(x)
        return _conv(6, 1, self.dtype, "conv_out", jnp.float32)(nn.relu(x))


class Codes(nn.Module):
    """Quantiser interface of the dVAE, whose codes are embedded as one-hot vectors."""

    size: int

    @property
    def dim(self) -> int:
        """Dimension of an embedded code: the number of codes."""
        return self.size

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w k"]:
        """Embeds codes as one-hot vectors."""
        return jax.nn.one_hot(codes, self.size)


class DVAE(nn.Module):
    """DALL-E's discrete VAE. Parameters: `encoder`, `decoder`.

    Attributes:
      n_hid: channels at the highest resolution.
      blocks: number of residual blocks per group; there are four groups.
      n_init: number of channels of the embedding of codes in the decoder.
      dtype: dtype of the convolutions; logits over codes and pixels are float32.
    """

    quantizer: Codes
    n_hid: int
    blocks: int
    n_init: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the layers and parameters."""
        self.encoder = _Encoder(self.quantizer.size, self.n_hid, self.blocks, self.dtype)
        self.decoder = _Decoder(self.n_hid, self.blocks, self.n_init, self.dtype)

    @property
    def factor(self) -> int:
        """Downsampling factor: side of a code in pixels."""
        return 2 ** (_GROUPS - 1)

    def latents(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 k"]:
        """Encodes pixels in [-1, 1] to logits over codes."""
        return self.encoder((1 - 2 * _EPS) * (images + 1) / 2 + _EPS)

    def encode(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b h2 w2"]:
        """Encodes pixels in [-1, 1] to codes."""
        return jnp.argmax(self.latents(images), axis=-1).astype(jnp.int32)

    def decode(self, codes: Int[Array, "b h2 w2"]) -> Float[Array, "b h w 3"]:
        """Decodes codes to pixels, nominally in [-1, 1]."""
        return self.decode_vectors(self.quantizer.embed(codes))

    def decode_vectors(self, vectors: Float[Array, "b h2 w2 k"]) -> Float[Array, "b h w 3"]:
        """Decodes distributions over codes to pixels: the location parameters, the first three of six output channels."""
        pixels = jax.nn.sigmoid(self.decoder(vectors)[..., :3])
        return 2 * (pixels - _EPS) / (1 - 2 * _EPS) - 1

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Reconstructs images."""
        return self.decode(self.encode(images))
