"""Stem of ViTamin (arXiv 2404.02132, section 4): two stages of inverted bottlenecks (arXiv 1801.04381)."""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nn_jax.convolution import Conv, DepthwiseConv
from nn_jax.layers import ACTIVATIONS, Dense, layer_norm

_EXPANSION = 4


class MBConv(nn.Module):
    """Inverted bottleneck: x + project(activation(depthwise convolution(activation(expand(norm(x)))))).

    With a stride, the shortcut has average pooling; if the number of channels changes, it has a 1 x 1 convolution.
    """

    features: int
    stride: int
    activation: str
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Applies the block; with a stride of 2 the sides are halved."""
        activation, hidden = ACTIVATIONS[self.activation], _EXPANSION * self.features
        y = layer_norm(self.eps, self.dtype, "norm")(x)
        y = activation(Dense((hidden,), ("embed", "mlp"), x.shape[-1] ** -0.5, self.dtype, name="expand")(y))
        y = activation(DepthwiseConv(3, self.dtype, self.stride, name="conv")(y))
        y = Dense((self.features,), ("mlp", "embed"), hidden**-0.5, self.dtype, name="project")(y)
        if self.stride > 1:
            x = nn.avg_pool(x, (3, 3), (self.stride,) * 2, ((1, 1), (1, 1)), count_include_pad=False)
        if x.shape[-1] != self.features:
            x = Dense((self.features,), ("channels_in", "channels_out"), x.shape[-1] ** -0.5, self.dtype, name="shortcut")(x)
        return x + y


class MBConvStem(nn.Module):
    """Maps images to a sixteenth of their sides and `width` channels.

    Attributes:
      channels: channels of the first convolutions and stage; the second stage has twice as many.
      layers: number of blocks of both stages.
    """

    channels: int
    layers: tuple[int, ...]
    width: int
    activation: str
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b size size 3"]) -> Float[Array, "b grid grid width"]:
        """Maps pixels to the positions of the transformer."""
        x = Conv(self.channels, 3, self.dtype, stride=2, padding=1, name="conv1")(x)
        x = ACTIVATIONS[self.activation](layer_norm(self.eps, self.dtype, "norm1")(x))
        x = Conv(self.channels, 3, self.dtype, name="conv2")(x)
        for stage, blocks in enumerate(self.layers):
            for index in range(blocks):
                options = (self.channels * 2**stage, 1 if index else 2, self.activation, self.eps, self.dtype)
                x = MBConv(*options, name=f"stage{stage + 1}_{index}")(x)
        x = layer_norm(self.eps, self.dtype, "norm")(x)
        axes = ("channels_in", "embed")
        return Conv(self.width, 3, self.dtype, stride=2, padding=1, axes=axes, name="proj")(x)
