"""OpenAI's modified ResNet as the image tower: RN50, RN101, RN50x4, RN50x16, RN50x64 (arXiv 2103.00020, section 2.4).

The stem has three convolutions, average pooling replaces strides, and the last layer is attention pooling. Batch norm
uses the statistics of the global batch in training; its running statistics are the collection `batch_stats`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.options import CLIPOptions
from nn_jax.attention import Context, CrossAttention
from nn_jax.convolution import REMAT, Conv
from nn_jax.layers import add_parameter, with_axis_names
from train_jax.compute import Compute


def batch_norm(name: str, dtype, deterministic: bool, scale: float = 1.0) -> nn.BatchNorm:
    """Makes a batch norm with PyTorch's options; `deterministic`: with the running statistics."""
    return nn.BatchNorm(
        use_running_average=deterministic,
        momentum=0.9,  # weight of the old value; equals PyTorch's momentum of 0.1, the weight of the new value
        epsilon=1e-5,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=with_axis_names(nn.initializers.constant(scale), "norm"),
        bias_init=with_axis_names(nn.initializers.zeros_init(), "norm"),
        name=name,
    )


def _conv(features: int, kernel: int, stride: int, dtype, name: str):
    return Conv(features, kernel, dtype, stride=stride, padding=kernel // 2, bias=False, std="he", name=name)


def _average_pool(x, stride: int):
    return nn.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


class Bottleneck(nn.Module):
    """Bottleneck block: 1 x 1 and 3 x 3 convolution, average pooling, 1 x 1 convolution to four times the width.

    If the shape changes, the shortcut has average pooling and a 1 x 1 convolution.
    """

    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, deterministic: bool):
        """Applies the block: [batch, height, width, channels] to 4 * `width` channels and a stride-th of the sides."""
        out_channels = 4 * self.width
        y = nn.relu(batch_norm("norm1", self.dtype, deterministic)(_conv(self.width, 1, 1, self.dtype, "conv1")(x)))
        y = nn.relu(batch_norm("norm2", self.dtype, deterministic)(_conv(self.width, 3, 1, self.dtype, "conv2")(y)))
        y = _conv(out_channels, 1, 1, self.dtype, "conv3")(_average_pool(y, self.stride))
        y = batch_norm("norm3", self.dtype, deterministic, 0.0)(y)  # initialised as the identity
        if self.stride > 1 or x.shape[-1] != out_channels:
            x = _conv(out_channels, 1, 1, self.dtype, "shortcut")(_average_pool(x, self.stride))
            x = batch_norm("shortcut_norm", self.dtype, deterministic)(x)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Attention pooling with learned positions. The query is the mean feature; keys are the mean and all features."""

    embed_dim: int
    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch positions embed_dim"]:
        """Pools a feature map; `each_patch`: returns the projected value of each position instead of the pool."""
        channels = x.shape[-1]
        x = x.reshape(x.shape[0], -1, channels)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        init = with_axis_names(nn.initializers.normal(channels**-0.5), "length", "embed")
        x = add_parameter(x, self.param("positions", init, x.shape[1:]))
        attention = CrossAttention(channels, self.heads, self.embed_dim, self.dtype, jnp.float32, name="attention")
        if each_patch:  # each position attends only to itself (arXiv 2112.01071, section 3.3)
            features = x[:, 1:].reshape(-1, 1, channels)
            return attention(features, Context(features)).reshape(x.shape[0], -1, self.embed_dim)
        return attention(x[:, :1], Context(x))[:, 0]


class ResNetTower(nn.Module):
    """ResNet: encodes normalised images as float32 features of width `embed_dim`.

    The last stage has 32 times `image.width` channels.
    """

    options: CLIPOptions
    compute: Compute

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True, each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch patches embed_dim"]:
        """Computes the features of images or, with `each_patch`, of all positions of the last feature map."""
        image, dtype = self.options.image, self.compute.array_dtype
        x = images.astype(dtype)
        for index, (features, stride) in enumerate(((image.width // 2, 2), (image.width // 2, 1), (image.width, 1)), 1):
            x = _conv(features, 3, stride, dtype, f"conv{index}")(x)
            x = nn.relu(batch_norm(f"norm{index}", dtype, deterministic)(x))
        x = _average_pool(x, 2)
        bottleneck = Bottleneck
        if self.compute.remat != "none":
            bottleneck = nn.remat(Bottleneck, policy=REMAT[self.compute.remat], static_argnums=(2,))
        for stage, blocks in enumerate(image.layers):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                name = f"stage{stage + 1}_{block}"
                x = bottleneck(image.width * 2**stage, stride, dtype, name=name)(x, deterministic)
        x = nn.with_logical_constraint(x, ("batch", None, None, None))
        return AttentionPool(self.options.embed_dim, image.heads, dtype, name="pool")(x, each_patch)
