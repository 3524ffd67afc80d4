"""Blocks on feature maps [B, H, W, C]: residual, attention, down- and up-sampling (as in arXiv 2012.09841 and DDPM)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nn_jax.layers import conv, group_norm


def map_conv(features: int, kernel: int, x, dtype, name: str, stride: int = 1, padding: int | None = None):
    """A convolution that keeps the map's size, applied to `x`; weights start with PyTorch's default variance."""
    std = (3 * kernel * kernel * x.shape[-1]) ** -0.5
    layer = conv(
        features,
        kernel,
        stride,
        axes=("channels_in", "channels_out"),
        std=std,
        dtype=dtype,
        name=name,
        bias=True,
        padding=kernel // 2 if padding is None else padding,
    )
    return layer(x)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))); a 1 x 1 convolution on x where the number of channels changes."""

    features: int
    groups: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], deterministic: bool = True) -> Float[Array, "b h w d"]:
        y = nn.swish(group_norm(self.groups, self.dtype, "norm1")(x))
        y = map_conv(self.features, 3, y, self.dtype, "conv1")
        y = nn.swish(group_norm(self.groups, self.dtype, "norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
        y = map_conv(self.features, 3, y, self.dtype, "conv2")
        if x.shape[-1] != self.features:
            x = map_conv(self.features, 1, x, self.dtype, "shortcut")
        return x + y


class AttentionBlock(nn.Module):
    """x + attention over all places of norm(x), with one head as wide as the map has channels."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = group_norm(self.groups, self.dtype, "norm")(x)
        q, k, v = (map_conv(c, 1, y, self.dtype, name).reshape(b, h * w, 1, c) for name in "qkv")
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        return x + map_conv(c, 1, y, self.dtype, "out")


class Downsample(nn.Module):
    """Half the size: a 3 x 3 convolution of stride 2 on the map with one row and column of zeros below and at the right."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return map_conv(x.shape[-1], 3, x, self.dtype, "conv", stride=2, padding=0)


class Upsample(nn.Module):
    """Twice the size: nearest neighbours, then a 3 x 3 convolution."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return map_conv(c, 3, x, self.dtype, "conv")
