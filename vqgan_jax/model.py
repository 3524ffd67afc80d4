"""The autoencoder of VQGAN (arXiv 2012.09841): encoder, quantiser, decoder, as in taming-transformers, and its successors.

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

from nn_jax import convolution
from nn_jax.convolution import REMAT, AttentionBlock, Conv, Downsample, ResidualBlock, normalize
from train_jax.compute import Compute
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from vqgan_jax import quantize
from vqgan_jax.dvae import DVAE, Codes
from vqgan_jax.quantize import Quantized


@dataclasses.dataclass(frozen=True)
class Layout:
    """What distinguishes the encoders and decoders of VQGANs.

    Attributes:
      is_direct: whether the encoder ends, and the decoder begins, at the quantiser, without 1 x 1 convolutions in between.
        Then the last convolution of the encoder is 1 x 1, its first one and those of residual blocks have no biases, and the
        bottleneck and each level of the decoder have `blocks` residual blocks; otherwise they have 2 and `blocks + 1`.
      downsample: "pad" a row and a column for the convolution of stride 2, pad on all sides ("symmetric"), or "average".
      depth_to_space: whether the decoder rearranges channels to pixels; otherwise it interpolates.
      norm: what conditions the decoder's norms on the quantised vectors: nothing ("group"), "spatial" norms, or "adaptive"
        norms before each level.
      late_shortcut: see `nn_jax.convolution.ResidualBlock`.
    """

    is_direct: bool = False
    downsample: str = "pad"
    depth_to_space: bool = False
    norm: str = "group"
    late_shortcut: bool = False


LAYOUTS = {
    "taming": Layout(),
    "movq": Layout(norm="spatial"),
    "maskgit": Layout(is_direct=True, downsample="average", late_shortcut=True),
    "magvit2": Layout(is_direct=True, downsample="symmetric", depth_to_space=True, norm="adaptive"),
}


class _Coder(nn.Module):
    """Base class of encoder and decoder. `z` conditions norms (`nn_jax.convolution.SpatialNorm`); None: plain group norms.

    Attributes:
      channels: number of channels at the highest resolution.
      multipliers: factors of `channels` at each level, from the highest resolution to the lowest.
      blocks: number of residual blocks per level; see also `Layout`.
      attention: for each level, whether attention follows each residual block.
      middle_attention: whether attention follows the first residual block at the bottleneck.
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
    layout: Layout

    def rematerialize(self, block: type[nn.Module], *static: int) -> type[nn.Module]:
        """Applies rematerialisation to a block, of whose arguments (`self` is 0) those at `static` are not arrays."""
        return block if self.remat == "none" else nn.remat(block, policy=REMAT[self.remat], static_argnums=static)

    def apply_residual_block(self, x, z, level: int, name: str, deterministic: bool):
        features = self.channels * self.multipliers[level]
        block = self.rematerialize(ResidualBlock, 2)
        options = {"bias": not self.layout.is_direct, "late_shortcut": self.layout.late_shortcut, "name": name}
        return block(features, self.groups, self.dropout, self.dtype, **options)(x, deterministic, z)

    def make_attention_block(self, name: str):
        return self.rematerialize(AttentionBlock)(self.groups, self.dtype, name=name)

    def apply_middle(self, x, z, deterministic: bool):
        for index in range(self.blocks if self.layout.is_direct else 2):
            x = self.apply_residual_block(x, z, -1, f"mid_block{index + 1}", deterministic)
            if self.middle_attention and not index:
                x = self.make_attention_block("mid_attention")(x, z)
        return x

    def apply_level(self, x, z, level: int, name: str, blocks: int, deterministic: bool):
        """Applies the residual and attention blocks of a level."""
        for index in range(blocks):
            x = self.apply_residual_block(x, z, level, f"{name}_block{index}", deterministic)
            if self.attention[level]:
                x = self.make_attention_block(f"{name}_attention{index}")(x, z)
        return x


class Encoder(_Coder):
    """Encoder: pixels -> feature map with `out` channels, downsampled by 2 ** (levels - 1)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], deterministic: bool = True) -> Float[Array, "b h2 w2 out"]:
        """Encodes pixels; `deterministic`: without dropout."""
        is_direct = self.layout.is_direct
        x = Conv(self.channels, 3, self.dtype, bias=not is_direct, name="conv_in")(x.astype(self.dtype))
        for level in range(len(self.multipliers)):
            x = self.apply_level(x, None, level, f"down{level}", self.blocks, deterministic)
            if level < len(self.multipliers) - 1:
                x = self.downsample(x, f"down{level}")
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = self.apply_middle(x, None, deterministic)
        x = nn.swish(normalize(x, None, self.groups, self.dtype, "norm_out"))
        # Latents are float32; `quant_conv` makes them so where it follows.
        window, out_dtype = (1, jnp.float32) if is_direct else (3, None)
        return Conv(self.out, window, self.dtype, out_dtype=out_dtype, name="conv_out")(x)

    def downsample(self, x, name: str):
        """Halves the sides as the layout does."""
        if self.layout.downsample == "average":
            return nn.avg_pool(x, (2, 2), (2, 2))
        return Downsample(self.dtype, self.layout.downsample == "symmetric", name=name)(x)


class Decoder(_Coder):
    """Decoder: feature map -> input of the last convolution. The method `apply_last_conv` applies the last convolution."""

    def setup(self):
        """Makes the layers and parameters."""
        self.conv_out = Conv(self.out, 3, self.dtype, axes=("channels_in", "norm"), out_dtype=jnp.float32)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w z"], vectors: Float[Array, "b h w d"], deterministic: bool = True
    ) -> Float[Array, "b h2 w2 c"]:
        """Decodes a feature map; `vectors` are the quantised vectors, which condition the norms of some layouts."""
        z = vectors.astype(self.dtype) if self.layout.norm == "spatial" else None
        x = Conv(self.channels * self.multipliers[-1], 3, self.dtype, name="conv_in")(x.astype(self.dtype))
        x = self.apply_middle(x, z, deterministic)
        for level in reversed(range(len(self.multipliers))):
            if self.layout.norm == "adaptive":
                x = convolution.AdaptiveNorm(self.groups, self.dtype, name=f"up{level}_norm")(x, vectors)
            x = self.apply_level(x, z, level, f"up{level}", self.blocks + (not self.layout.is_direct), deterministic)
            if level:
                upsample = convolution.DepthToSpace if self.layout.depth_to_space else convolution.Upsample
                x = upsample(self.dtype, name=f"up{level}")(x)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        return nn.swish(normalize(x, z, self.groups, self.dtype, "norm_out"))

    def apply_last_conv(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """Applies the last convolution to features; returns float32 pixels."""
        return self.conv_out(x)


class VQGAN(nn.Module):
    """The autoencoder of VQGAN. Parameters: `encoder`, `quant_conv`, `quantizer`, `post_quant_conv`, `decoder`.

    A direct layout (see `Layout`) has no `quant_conv` and `post_quant_conv`.

    Attributes:
      coder: attributes of encoder and decoder.
      unit: whether encoder and decoder use pixels in [0, 1]; methods accept and return pixels in [-1, 1] in both cases.
    """

    coder: Mapping[str, Any]
    z_channels: int
    quantizer: nn.Module
    unit: bool = False

    def setup(self):
        """Makes the layers and parameters."""
        self.encoder = Encoder(out=self.z_channels, **self.coder)
        self.decoder = Decoder(out=3, **self.coder)
        if not self.coder["layout"].is_direct:
            dtype, axes = self.coder["dtype"], ("channels_in", "norm")
            self.quant_conv = Conv(self.quantizer.inputs, 1, dtype, axes=axes, out_dtype=jnp.float32)
            self.post_quant_conv = Conv(self.z_channels, 1, dtype, axes=axes)

    @property
    def factor(self) -> int:
        """Downsampling factor: side of a code in pixels."""
        return 2 ** (len(self.coder["multipliers"]) - 1)

    def latents(self, images: Float[Array, "b h w c"], deterministic: bool = True) -> Float[Array, "b h2 w2 d"]:
        """Encodes pixels in [-1, 1] to float32 latents before quantisation."""
        x = self.encoder((images + 1) / 2 if self.unit else images, deterministic)
        return x if self.coder["layout"].is_direct else self.quant_conv(x)

    def features(
        self, images: Float[Array, "b h w 3"], deterministic: bool, temperature=1.0
    ) -> tuple[Float[Array, "b h w c"], Quantized]:
        """Returns the input of the decoder's last convolution for images, and the quantiser's output."""
        quantized = self.quantizer(self.latents(images, deterministic), not deterministic, temperature)
        return self.decode_features(quantized.vectors, deterministic), quantized

    def decode_features(self, vectors: Float[Array, "b h2 w2 d"], deterministic: bool = True) -> Float[Array, "b h w c"]:
        """Decodes quantised vectors to the input of the last convolution."""
        x = vectors if self.coder["layout"].is_direct else self.post_quant_conv(vectors)
        return self.decoder(x, vectors, deterministic)

    def pixels(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """Applies the last convolution; returns float32 pixels, nominally in [-1, 1]."""
        pixels = self.decoder.apply_last_conv(features)
        return 2 * pixels - 1 if self.unit else pixels

    def encode(self, images: Float[Array, "b h w c"]) -> Int[Array, "b h2 w2"]:
        """Encodes pixels in [-1, 1] to codes; maps of other numbers of channels, too, by an encoder that reads these."""
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

    added = ("layout",)

    architecture: str = option(
        "vqgan",
        "autoencoder type; dvae: DALL-E's discrete VAE, which uses channels, blocks, z_channels and quantizer.size",
        choices=("vqgan", "dvae"),
    )
    layout: str = option(
        "taming",
        "structure of encoder and decoder; movq: norms of the decoder conditioned on the quantised vectors (Kandinsky); "
        "maskgit, magvit2: of MaskGIT and of Open-MAGVIT2",
        choices=LAYOUTS,
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
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        if self.architecture == "dvae":
            self.require(self.layout == "taming", path, "layout", "taming for architecture dvae")
            return
        if LAYOUTS[self.layout].is_direct:
            inputs = quantize.build(self.quantizer).inputs
            self.require(
                self.z_channels == inputs, path, "z_channels", f"the quantiser's {inputs} channels for layout {self.layout}"
            )
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
        layout=LAYOUTS[options.layout],
    )
    return VQGAN(coder, options.z_channels, quantize.build(options.quantizer), options.pixels == "unit")
