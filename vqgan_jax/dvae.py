"""DALL·E 1's discrete autoencoder (arXiv 2102.12092, section 2.1 and appendix A), for its public weights: not trained here.

It has the face of `vqgan_jax.model.VQGAN`: pixels in [-1, 1], codes, vectors. A vector is a distribution over the codes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nn_jax.convolution import Conv, upsample_nearest

_EPS = 0.1  # pixels in [0, 1] are drawn together to [0.1, 0.9]
_GROUPS = 4


class _Block(nn.Module):
    """x + residual / blocks^2, the residual four convolutions of `kernels`, each after a ReLU."""

    features: int
    kernels: tuple[int, int, int, int]
    gain: float

    @nn.compact
    def __call__(self, x):
        y = x
        widths = (*(self.features // 4,) * 3, self.features)
        for number, (width, kernel) in enumerate(zip(widths, self.kernels, strict=True), 1):
            y = _conv(width, kernel, f"conv{number}")(nn.relu(y))
        shortcut = x if x.shape[-1] == self.features else _conv(self.features, 1, "shortcut")(x)
        return shortcut + self.gain * y


def _conv(features: int, window: int, name: str) -> Conv:
    return Conv(features, window, jnp.float32, std="he", name=name)


class _Encoder(nn.Module):
    size: int
    channels: int
    blocks: int

    @nn.compact
    def __call__(self, x):
        x = _conv(self.channels, 7, "conv_in")(x)
        for group in range(_GROUPS):
            for number in range(self.blocks):
                gain = (_GROUPS * self.blocks) ** -2
                x = _Block(self.channels << group, (3, 3, 3, 1), gain, name=f"group{group}_block{number}")(x)
            if group < _GROUPS - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return _conv(self.size, 1, "conv_out")(nn.relu(x))


class _Decoder(nn.Module):
    channels: int
    blocks: int
    start: int

    @nn.compact
    def __call__(self, p):
        x = _conv(self.start, 1, "conv_in")(p)
        for group in range(_GROUPS):
            for number in range(self.blocks):
                gain, width = (_GROUPS * self.blocks) ** -2, self.channels << (_GROUPS - 1 - group)
                x = _Block(width, (1, 3, 3, 3), gain, name=f"group{group}_block{number}")(x)
            if group < _GROUPS - 1:
                x = upsample_nearest(x)
        return _conv(6, 1, "conv_out")(nn.relu(x))


class Codes(nn.Module):
    """What stands in the quantiser's place: the number of codes, and one-hot vectors."""

    size: int

    @property
    def dim(self) -> int:
        return self.size

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w k"]:
        return jax.nn.one_hot(codes, self.size)


class DVAE(nn.Module):
    """Parameters: `encoder`, `decoder`.

    Attributes:
      channels: of the highest resolution.
      blocks: residual blocks a group; there are four groups.
      start: channels into which codes are embedded.
    """

    quantizer: Codes
    channels: int
    blocks: int
    start: int

    def setup(self):
        self.encoder = _Encoder(self.quantizer.size, self.channels, self.blocks)
        self.decoder = _Decoder(self.channels, self.blocks, self.start)

    @property
    def factor(self) -> int:
        """How many pixels a code is wide and high."""
        return 2 ** (_GROUPS - 1)

    def latents(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 k"]:
        """Pixels in [-1, 1] -> logits of the codes."""
        return self.encoder((1 - 2 * _EPS) * (images + 1) / 2 + _EPS)

    def encode(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b h2 w2"]:
        """Pixels in [-1, 1] -> codes."""
        return jnp.argmax(self.latents(images), axis=-1).astype(jnp.int32)

    def decode(self, codes: Int[Array, "b h2 w2"]) -> Float[Array, "b h w 3"]:
        """Codes -> pixels, nominally in [-1, 1]."""
        return self.decode_vectors(self.quantizer.embed(codes))

    def decode_vectors(self, vectors: Float[Array, "b h2 w2 k"]) -> Float[Array, "b h w 3"]:
        """Distributions over codes -> pixels: of the six numbers a pixel, the first three are locations."""
        found = jax.nn.sigmoid(self.decoder(vectors)[..., :3])
        return 2 * (found - _EPS) / (1 - 2 * _EPS) - 1

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Reconstructions."""
        return self.decode(self.encode(images))
