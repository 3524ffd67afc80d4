"""VQGAN's autoencoder (arXiv 2012.09841): encoder, quantiser, decoder, as in taming-transformers.

pixels in [-1, 1] -> encode -> latents [B, h, w, D] -> quantise -> codes [B, h, w] -> decode -> pixels
"""

from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from nn_jax.convolution import AttentionBlock, Conv, Downsample, ResidualBlock, Upsample
from nn_jax.layers import DTYPES, group_norm
from train_jax.errors import ConfigError
from vqgan_jax import quantize
from vqgan_jax.dvae import DVAE, Codes
from vqgan_jax.quantize import Quantized


class _Maps(nn.Module):
    """What encoder and decoder share.

    Attributes:
      channels: of the highest resolution.
      multipliers: channels of each level, in multiples of `channels`, from the highest resolution to the lowest.
      blocks: residual blocks a level (the decoder has one more).
      attention: for each level, whether its blocks are followed by attention.
      middle_attention: whether there is attention between the two residual blocks in the middle.
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

    def residual(self, x, level: int, name: str, deterministic: bool):
        features = self.channels * self.multipliers[level]
        return ResidualBlock(features, self.groups, self.dropout, self.dtype, name=name)(x, deterministic)

    def attend(self, name: str):
        return AttentionBlock(self.groups, self.dtype, name=name)

    def middle(self, x, deterministic: bool):
        x = self.residual(x, -1, "mid_block1", deterministic)
        if self.middle_attention:
            x = self.attend("mid_attention")(x)
        return self.residual(x, -1, "mid_block2", deterministic)

    def level(self, x, level: int, name: str, blocks: int, deterministic: bool):
        """The residual blocks of a level, with their attention."""
        for number in range(blocks):
            x = self.residual(x, level, f"{name}_block{number}", deterministic)
            if self.attention[level]:
                x = self.attend(f"{name}_attention{number}")(x)
        return x


class Encoder(_Maps):
    """Pixels -> feature map with `out` channels, smaller by 2 to the number of levels less one."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], deterministic: bool = True) -> Float[Array, "b h2 w2 out"]:
        x = Conv(self.channels, 3, self.dtype, name="conv_in")(x.astype(self.dtype))
        for level in range(len(self.multipliers)):
            x = self.level(x, level, f"down{level}", self.blocks, deterministic)
            if level < len(self.multipliers) - 1:
                x = Downsample(self.dtype, name=f"down{level}")(x)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = self.middle(x, deterministic)
        x = nn.swish(group_norm(self.groups, self.dtype, "norm_out")(x))
        return Conv(self.out, 3, self.dtype, name="conv_out")(x)


class Decoder(_Maps):
    """Feature map -> what the last convolution makes pixels of; `last` is that convolution."""

    def setup(self):
        self.conv_out = Conv(self.out, 3, self.dtype, axes=("channels_in", "norm"), out_dtype=jnp.float32)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w z"], deterministic: bool = True) -> Float[Array, "b h2 w2 c"]:
        x = Conv(self.channels * self.multipliers[-1], 3, self.dtype, name="conv_in")(x.astype(self.dtype))
        x = self.middle(x, deterministic)
        for level in reversed(range(len(self.multipliers))):
            x = self.level(x, level, f"up{level}", self.blocks + 1, deterministic)
            if level:
                x = Upsample(self.dtype, name=f"up{level}")(x)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        return nn.swish(group_norm(self.groups, self.dtype, "norm_out")(x))

    def last(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """Pixels, float32."""
        return self.conv_out(x)


class VQGAN(nn.Module):
    """The autoencoder. Parameters: `encoder`, `quant_conv`, `quantizer`, `post_quant_conv`, `decoder`.

    Attributes:
      unit: whether encoder and decoder work on pixels in [0, 1]; its methods take and give [-1, 1] all the same.
    """

    maps: Mapping[str, Any]
    z_channels: int
    quantizer: nn.Module
    unit: bool = False

    def setup(self):
        self.encoder = Encoder(out=self.z_channels, **self.maps)
        self.decoder = Decoder(out=3, **self.maps)
        dtype = self.maps["dtype"]

        axes = ("channels_in", "norm")
        self.quant_conv = Conv(self.quantizer.inputs, 1, dtype, axes=axes, out_dtype=jnp.float32)
        self.post_quant_conv = Conv(self.z_channels, 1, dtype, axes=axes)

    @property
    def factor(self) -> int:
        """How many pixels a code is wide and high."""
        return 2 ** (len(self.maps["multipliers"]) - 1)

    def latents(self, images: Float[Array, "b h w 3"], deterministic: bool = True) -> Float[Array, "b h2 w2 d"]:
        """Pixels in [-1, 1] -> what the quantiser rounds, float32."""
        images = (images + 1) / 2 if self.unit else images
        return self.quant_conv(self.encoder(images, deterministic))

    def features(
        self, images: Float[Array, "b h w 3"], deterministic: bool, temperature=1.0
    ) -> tuple[Float[Array, "b h w c"], Quantized]:
        """All but the last convolution of a reconstruction, and what the quantiser says."""
        quantized = self.quantizer(self.latents(images, deterministic), not deterministic, temperature)
        return self.expand(quantized.vectors, deterministic), quantized

    def expand(self, vectors: Float[Array, "b h2 w2 d"], deterministic: bool = True) -> Float[Array, "b h w c"]:
        """Quantised vectors -> what `pixels` makes pixels of."""
        return self.decoder(self.post_quant_conv(vectors), deterministic)

    def pixels(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """The last convolution: float32 pixels, nominally in [-1, 1]."""
        found = self.decoder.last(features)
        return 2 * found - 1 if self.unit else found

    def encode(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b h2 w2"]:
        """Pixels in [-1, 1] -> codes."""
        return self.quantizer(self.latents(images), False, 1.0).codes

    def decode(self, codes: Int[Array, "b h2 w2"]) -> Float[Array, "b h w 3"]:
        """Codes -> pixels, nominally in [-1, 1]."""
        return self.decode_vectors(self.quantizer.embed(codes))

    def decode_vectors(self, vectors: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w 3"]:
        """Vectors in the codebook's space, quantised or not -> pixels."""
        return self.pixels(self.expand(vectors))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Reconstructions."""
        return self.pixels(self.features(images, True)[0])


Autoencoder = VQGAN | DVAE


def defaults() -> ConfigDict:
    """Options of a model; those of the f16, 1024-code model of arXiv 2012.09841."""
    c = ConfigDict()
    c.architecture = (
        "vqgan"  # "dvae": the public one of DALL-E 1, which reads channels, blocks, z_channels, quantizer.size
    )
    c.channels = 128
    c.multipliers = (1, 1, 2, 2, 4)  # a level each; the map halves between levels, so that f = 2 ** (levels - 1)
    c.blocks = 2
    c.resolution = 256  # of the pictures, for which `attention` says where
    c.attention = (16,)  # sizes of the map at which there is attention
    c.middle_attention = True  # at the lowest resolution, between encoder and codes and between codes and decoder
    c.pixels = "signed"  # what the layers see: in [-1, 1]; "unit": in [0, 1] (dalle-mini)
    c.z_channels = 256
    c.groups = 32  # of the group norms; divides the channels of every level
    c.dropout = 0.0
    c.quantizer = quantize.defaults()
    c.dtype = "float32"
    return c


def build(options: ConfigDict) -> Autoencoder:
    """The module that resolved options describe. Raises ConfigError for options that contradict each other."""
    if options.architecture == "dvae":
        return DVAE(Codes(options.quantizer.size), options.channels, options.blocks, options.z_channels)
    if options.architecture != "vqgan":
        raise ConfigError(f"config.model.architecture = {options.architecture!r}; it must be one of vqgan, dvae")
    levels = len(options.multipliers)
    if options.groups < 1:
        raise ConfigError(f"config.model.groups = {options.groups}; it must be at least 1")
    for level, multiplier in enumerate(options.multipliers):
        if options.channels * multiplier % options.groups:
            raise ConfigError(
                f"config.model.groups = {options.groups} does not divide the {options.channels * multiplier} channels of "
                f"level {level} (channels * multipliers[{level}])"
            )
    if options.resolution % 2 ** (levels - 1):
        raise ConfigError(
            f"config.model.resolution = {options.resolution} is not divisible by f = {2 ** (levels - 1)} "
            f"({levels} levels of config.model.multipliers)"
        )
    sizes = [options.resolution >> level for level in range(levels)]
    for size in options.attention:
        if size not in sizes:
            raise ConfigError(f"config.model.attention has {size}; the maps are {sizes} wide")
    if options.pixels not in ("signed", "unit"):
        raise ConfigError(f"config.model.pixels = {options.pixels!r}; it must be one of signed, unit")
    if options.dtype not in DTYPES:
        raise ConfigError(f"config.model.dtype = {options.dtype!r}; it must be one of {', '.join(DTYPES)}")
    # Frozen: a module can be hashed, and so be a static argument of jit, if its attributes can.
    maps = flax.core.FrozenDict(
        channels=options.channels,
        multipliers=tuple(options.multipliers),
        blocks=options.blocks,
        attention=tuple(size in tuple(options.attention) for size in sizes),
        middle_attention=options.middle_attention,
        groups=options.groups,
        dropout=options.dropout,
        dtype=DTYPES[options.dtype],
    )
    return VQGAN(maps, options.z_channels, quantize.build(options.quantizer), options.pixels == "unit")
