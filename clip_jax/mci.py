"""MobileCLIP's convolutional image towers MCi (arXiv 2311.17049, section 4.1), a FastViT (arXiv 2303.14189), for inference.

Batch norms, parallel branches and shortcuts of its training are folded into the convolutions, as the papers do before
inference (structural reparameterisation); layer scales and batch norms before attention, too. MobileCLIP2's larger towers
(arXiv 2508.20691) have five stages instead of four, and another `Design`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.options import CLIPOptions
from clip_jax.projection import project
from nn_jax.attention import SelfAttention
from nn_jax.convolution import Conv, DepthwiseConv
from nn_jax.layers import ACTIVATIONS, Dense, layer_norm
from nn_jax.transformer import REMAT
from train_jax.compute import Compute

HEAD_DIM = 32


class Design(NamedTuple):
    """What follows from the number of stages.

    Attributes:
      mlp_ratio: width of the MLPs, in channels.
      attending: number of stages, the last ones, that attend.
      has_norm: whether there is a layer norm before attention.
      exciting: number of stages, the last ones, before which channels are scaled; see `squeeze_excite`.
    """

    mlp_ratio: int
    attending: int
    has_norm: bool
    exciting: int


DESIGNS = {4: Design(3, 1, False, 2), 5: Design(4, 2, True, 0)}


def positions_name(stage: int, stages: int) -> str:
    """Returns the name of the convolution before attention in a stage, counted from 0; the last stage's has no number."""
    return "positions" if stage == stages - 1 else f"positions{stage + 1}"


def squeeze_excite(x: Float[Array, "b h w c"], hidden: int, dtype: DTypeLike) -> Float[Array, "b h w c"]:
    """Scales channels by a function of their means (arXiv 1709.01507), in the module that calls it: `squeeze`, `excite`."""
    channels = x.shape[-1]
    y = jnp.mean(x, axis=(1, 2), keepdims=True)
    y = nn.relu(Dense((hidden,), ("embed", "mlp"), channels**-0.5, dtype, name="squeeze")(y))
    return x * nn.sigmoid(Dense((channels,), ("mlp", "embed"), hidden**-0.5, dtype, name="excite")(y))


class MCiBlock(nn.Module):
    """Block: a depthwise convolution or x + attention(x), then y + mlp(depthwise convolution(y)).

    Attributes:
      attends: whether positions are mixed by attention.
      eps: of the layer norm before attention, if `design` has one.
    """

    activation: str
    attends: bool
    design: Design
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block; sizes are kept."""
        channels = x.shape[-1]
        std = channels**-0.5
        if self.attends:
            attention = SelfAttention(channels, channels // HEAD_DIM, std, std, False, self.dtype, name="attention")
            y = layer_norm(self.eps, self.dtype, "norm")(x) if self.design.has_norm else x
            x = x + attention(y.reshape(x.shape[0], -1, channels), x.shape[0]).reshape(x.shape)
        else:
            x = DepthwiseConv(3, self.dtype, name="mixer")(x)
        y = DepthwiseConv(7, self.dtype, name="conv")(x)
        y = Dense((self.design.mlp_ratio * channels,), ("embed", "mlp"), std, self.dtype, name="mlp_in")(y)
        y = Dense((channels,), ("mlp", "embed"), std, self.dtype, name="mlp_out")(ACTIVATIONS[self.activation](y))
        return x + y


class MCiDownsample(nn.Module):
    """Halves the sides and doubles the channels: a convolution of 7 x 7 of each channel to two, and one of 1 x 1.

    Attributes:
      has_excitation: whether channels are scaled between both; see `squeeze_excite`.
    """

    activation: str
    has_excitation: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Halves the sides and doubles the channels."""
        activation = ACTIVATIONS[self.activation]
        x = DepthwiseConv(7, self.dtype, 2, name="conv1")(jnp.repeat(x, 2, axis=-1))
        if self.has_excitation:
            x = squeeze_excite(x, x.shape[-1] // 4, self.dtype)
        return activation(Conv(x.shape[-1], 1, self.dtype, name="conv2")(activation(x)))


class MCiTower(nn.Module):
    """MCi: encodes normalised images as float32 features of width `embed_dim`.

    The first stage has `image.width` channels, and each other stage twice as many as the one before.
    """

    options: CLIPOptions
    compute: Compute

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True, each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch patches embed_dim"]:
        """Computes the features of images or, with `each_patch`, of all positions of the last feature map."""
        image, name, dtype = self.options.image, self.options.activation, self.compute.array_dtype
        activation, block, stages = ACTIVATIONS[name], MCiBlock, len(image.layers)
        design = DESIGNS[stages]
        if self.compute.remat != "none":
            block = nn.remat(MCiBlock, policy=REMAT[self.compute.remat])
        x = Conv(image.width, 3, dtype, stride=2, padding=1, name="stem1")(images.astype(dtype))
        x = DepthwiseConv(3, dtype, 2, name="stem2")(activation(x))
        x = activation(Conv(image.width, 1, dtype, name="stem3")(activation(x)))
        for stage, blocks in enumerate(image.layers):
            if stage:
                is_exciting = stage >= stages - design.exciting
                x = MCiDownsample(name, is_exciting, dtype, name=f"downsample{stage + 1}")(x)
            attends = stage >= stages - design.attending
            if attends:
                x = DepthwiseConv(7, dtype, name=positions_name(stage, stages))(x)
            for index in range(blocks):
                x = block(name, attends, design, self.options.eps, dtype, name=f"stage{stage + 1}_{index}")(x)
        x = DepthwiseConv(3, dtype, name="conv_out")(jnp.repeat(x, 2, axis=-1))
        x = activation(squeeze_excite(x, x.shape[-1] // 16, dtype))
        x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = x.reshape(x.shape[0], -1, x.shape[-1]) if each_patch else jnp.mean(x, axis=(1, 2))
        return project(x, self.options.embed_dim, dtype, bias=True)
