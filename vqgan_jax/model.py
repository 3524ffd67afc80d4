"""The autoencoder of VQGAN (arXiv 2012.09841): encoder, quantiser, decoder, as in taming-transformers.

pixels in [-1, 1] -> encode -> latents [B, h, w, D] -> quantise -> codes [B, h, w] -> decode -> pixels
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from nn_jax.convolution import REMAT, AttentionBlock, Conv, Downsample, ResidualBlock, Upsample
from nn_jax.layers import group_norm
from train_jax.compute import Compute
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from vqgan_jax import quantize
from vqgan_jax.dvae import DVAE, Codes
from vqgan_jax.quantize import Quantized


class _Coder(nn.Module):
    """Base class of encoder and decoder.

    Attributes:
      channels: number of channels at the highest resolution.
      multipliers: factors of `channels` at each level, from the highest resolution to the lowest.
      blocks: number of residual blocks per level (the decoder has one more).
      attention: for each level, whether attention follows each residual block.
      middle_attention: whether there is attention between the two residual blocks at the bottleneck.
      out: number of output channels.
      groups: number of groups of group norms.
      remat: rematerialisation of residual and attention blocks, a key of `nn_jax.convolution.REMAT`.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    middle_attention: bool
    out: int
    groups: int
    dropout: float
    dtype: DTypeLike
    remat: str

    def rematerialize(self, block: type[nn.Module], *static: int) -> type[nn.Module]:
        """Applies rematerialisation to a block, of whose arguments (`self` is 0) those at `static` are not arrays."""
        return block if self.remat == "none" else nn.remat(block, policy=REMAT[self.remat], static_argnums=static)

    def apply_residual_block(self, x, level: int, name: str, deterministic: bool):
        features = self.channels * self.multipliers[level]
        block = self.rematerialize(ResidualBlock, 2)
        return block(features, self.groups, self.dropout, self.dtype, name=name)(x, deterministic)

    def make_attention_block(self, name: str):
        return self.rematerialize(AttentionBlock)(self.groups, self.dtype, name=name)

    def apply_middle(self, x, deterministic: bool):
        x = self.apply_residual_block(x, -1, "mid_block1", deterministic)
        if self.middle_attention:
            x = self.make_attention_block("mid_attention")(x)
        return self.apply_residual_block(x, -1, "mid_block2", deterministic)

    def apply_level(self, x, level: int, name: str, blocks: int, deterministic: bool):
        """Applies the residual and attention blocks of a level."""
        for index in range(blocks):
            x = self.apply_residual_block(x, level, f"{name}_block{index}", deterministic)
            if self.attention[level]:
                x = self.make_attention_block(f"{name}_attention{index}")(x)
        return x


class Encoder(_Coder):
    """Encoder: pixels -> feature map with `out` channels, downsampled by 2 ** (levels - 1)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], deterministic: bool = True) -> Float[Array, "b h2 w2 out"]:
        x = Conv(self.channels, 3, self.dtype, name="conv_in")(x.astype(self.dtype))
        for level in range(len(self.multipliers)):
            x = self.apply_level(x, level, f"down{level}", self.blocks, deterministic)
            if level < len(self.multipliers) - 1:
                x = Downsample(self.dtype, name=f"down{level}")(x)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = self.apply_middle(x, deterministic)
        x = nn.swish(group_norm(self.groups, self.dtype, "norm_out")(x))
        return Conv(self.out, 3, self.dtype, name="conv_out")(x)


class Decoder(_Coder):
    """Decoder: feature map -> input of the last convolution. The method `apply_last_conv` applies the last convolution."""

    def setup(self):
        self.conv_out = Conv(self.out, 3, self.dtype, axes=("channels_in", "norm"), out_dtype=jnp.float32)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w z"], deterministic: bool = True) -> Float[Array, "b h2 w2 c"]:
        x = Conv(self.channels * self.multipliers[-1], 3, self.dtype, name="conv_in")(x.astype(self.dtype))
        x = self.apply_middle(x, deterministic)
        for level in reversed(range(len(self.multipliers))):
            x = self.apply_level(x, level, f"up{level}", self.blocks + 1, deterministic)
            if level:
                x = Upsample(self.dtype, name=f"up{level}")(x)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        return nn.swish(group_norm(self.groups, self.dtype, "norm_out")(x))

    def apply_last_conv(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """Applies the last convolution to features; returns float32 pixels."""
        return self.conv_out(x)


class VQGAN(nn.Module):
    """The autoencoder of VQGAN. Parameters: `encoder`, `quant_conv`, `quantizer`, `post_quant_conv`, `decoder`.

    Attributes:
      coder: attributes of encoder and decoder.
      unit: whether encoder and decoder use pixels in [0, 1]; methods accept and return pixels in [-1, 1] in both cases.
    """

    coder: Mapping[str, Any]
    z_channels: int
    quantizer: nn.Module
    unit: bool = False

    def setup(self):
        self.encoder = Encoder(out=self.z_channels, **self.coder)
        self.decoder = Decoder(out=3, **self.coder)
        dtype = self.coder["dtype"]

        axes = ("channels_in", "norm")
        self.quant_conv = Conv(self.quantizer.inputs, 1, dtype, axes=axes, out_dtype=jnp.float32)
        self.post_quant_conv = Conv(self.z_channels, 1, dtype, axes=axes)

    @property
    def factor(self) -> int:
        """Downsampling factor: side of a code in pixels."""
        return 2 ** (len(self.coder["multipliers"]) - 1)

    def latents(self, images: Float[Array, "b h w 3"], deterministic: bool = True) -> Float[Array, "b h2 w2 d"]:
        """Encodes pixels in [-1, 1] to float32 latents before quantisation."""
        images = (images + 1) / 2 if self.unit else images
        return self.quant_conv(self.encoder(images, deterministic))

    def features(
        self, images: Float[Array, "b h w 3"], deterministic: bool, temperature=1.0
    ) -> tuple[Float[Array, "b h w c"], Quantized]:
        """Returns the input of the decoder's last convolution for images, and the quantiser's output."""
        quantized = self.quantizer(self.latents(images, deterministic), not deterministic, temperature)
        return self.decode_features(quantized.vectors, deterministic), quantized

    def decode_features(self, vectors: Float[Array, "b h2 w2 d"], deterministic: bool = True) -> Float[Array, "b h w c"]:
        """Decodes quantised vectors to the input of the last convolution."""
        return self.decoder(self.post_quant_conv(vectors), deterministic)

    def pixels(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """Applies the last convolution; returns float32 pixels, nominally in [-1, 1]."""
        pixels = self.decoder.apply_last_conv(features)
        return 2 * pixels - 1 if self.unit else pixels

    def encode(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b h2 w2"]:
        """Encodes pixels in [-1, 1] to codes."""
        return self.quantizer(self.latents(images), False, 1.0).codes

    def decode(self, codes: Int[Array, "b h2 w2"]) -> Float[Array, "b h w 3"]:
        """Decodes codes to pixels, nominally in [-1, 1]."""
        return self.decode_vectors(self.quantizer.embed(codes))

    def decode_vectors(self, vectors: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w 3"]:
        """Decodes vectors in codebook space, quantised or not, to pixels."""
        return self.pixels(self.decode_features(vectors))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Reconstructs images."""
        return self.pixels(self.features(images, True)[0])


Autoencoder = VQGAN | DVAE


@dataclasses.dataclass(frozen=True)
class VQGANOptions(Options):
    """Options of the autoencoder; the defaults are those of the f16, 1024-code model of arXiv 2012.09841."""

    architecture: str = option(
        "vqgan",
        "autoencoder type; dvae: DALL-E's discrete VAE, which uses channels, blocks, z_channels and quantizer.size",
        choices=("vqgan", "dvae"),
    )
    channels: int = option(128, "channels at the highest resolution", least=1)
    multipliers: tuple[int, ...] = option((1, 1, 2, 2, 4), "channels of each level, as multiples of `channels`", least=1)
    blocks: int = option(2, "number of residual blocks per level", least=1)
    resolution: int = option(256, "side of the training images in pixels", least=1)
    attention: tuple[int, ...] = option((16,), "sides of the feature maps that have attention", least=1)
    middle_attention: bool = option(True, "attention at the bottleneck of encoder and decoder")
    pixels: str = option("signed", "pixel range of the network: signed [-1, 1] or unit [0, 1]", choices=("signed", "unit"))
    z_channels: int = option(256, "channels of the feature map between encoder and quantiser", least=1)
    groups: int = option(32, "number of groups of group norms; must divide the channels of every level", least=1)
    quantizer: quantize.QuantizerOptions = quantize.QuantizerOptions()

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """Sides of the feature maps of all levels."""
        return tuple(self.resolution >> level for level in range(len(self.multipliers)))

    def check(self, path: str) -> None:
        if self.architecture == "dvae":
            return
        for level, multiplier in enumerate(self.multipliers):
            if self.channels * multiplier % self.groups:
                raise ConfigError(
                    f"config.{path}.groups = {self.groups} does not divide the {self.channels * multiplier} channels of "
                    f"level {level} (channels * multipliers[{level}])"
                )
        factor = 2 ** (len(self.multipliers) - 1)
        if self.resolution % factor:
            raise ConfigError(
                f"config.{path}.resolution = {self.resolution} is not divisible by f = {factor} "
                f"({len(self.multipliers)} levels of config.{path}.multipliers)"
            )
        for size in self.attention:
            if size not in self.map_sizes:
                raise ConfigError(f"config.{path}.attention has {size}; the feature maps have sides {list(self.map_sizes)}")


def build(
    options: VQGANOptions | Mapping | ConfigDict, compute: Compute | None = None, dropout: float = 0.0
) -> Autoencoder:
    """Builds the autoencoder from `config.model`. Raises ConfigError for invalid options.

    Args:
      compute: precision and rematerialisation; None for the default.
      dropout: dropout rate of residual blocks in training.
    """
    options = options if isinstance(options, VQGANOptions) else VQGANOptions.parse(options, "model")
    compute = compute or Compute()
    if options.architecture == "dvae":
        size, z_channels = options.quantizer.size, options.z_channels
        return DVAE(Codes(size), options.channels, options.blocks, z_channels, compute.array_dtype)
    # A FrozenDict is hashable, so that the module can be a static argument of jit.
    coder = flax.core.FrozenDict(
        channels=options.channels,
        multipliers=options.multipliers,
        blocks=options.blocks,
        attention=tuple(size in options.attention for size in options.map_sizes),
        middle_attention=options.middle_attention,
        groups=options.groups,
        dropout=dropout,
        dtype=compute.array_dtype,
        remat=compute.remat,
    )
    return VQGAN(coder, options.z_channels, quantize.build(options.quantizer), options.pixels == "unit")
