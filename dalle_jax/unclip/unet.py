"""The U-Net of decoder and upsamplers (arXiv 2204.06125, section 2.1; ADM, arXiv 2105.05233, section 3)."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from dalle_jax.unclip.context import Context
from dalle_jax.unclip.options import UNetOptions
from dalle_jax.unclip.timestep import TimeEmbedding
from nn_jax import convolution, transformer
from nn_jax.attention import attend
from nn_jax.convolution import Conv, upsample_nearest
from nn_jax.layers import Dense, group_norm
from train_jax.compute import Compute

_EPS = 1e-5


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width by the mean over 2 x 2 pixels."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Makes each patch of `patch` x `patch` pixels one position, with the channels of all of its pixels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Inverts `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).swapaxes(2, 3)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


class ResidualBlock(nn.Module):
    """Residual block that depends on an embedding, by a scale and shift after its second norm, or a sum before it.

    The last convolution is initialised to zero. The shortcut is a 1 x 1 convolution if the number of channels changes.

    Attributes:
      resize: function that resizes the input and, after the first norm, the features; None: none.
    """

    features: int
    groups: int
    scale_shift: bool
    resize: Callable | None
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool = True
    ) -> Float[Array, "b h2 w2 features"]:
        """Applies the block; `embedding` is that of timestep and condition."""
        y = nn.silu(group_norm(self.groups, self.dtype, "norm1", _EPS)(x))
        if self.resize is not None:
            x, y = self.resize(x), self.resize(y)
        y = Conv(self.features, 3, self.dtype, name="conv1")(y)
        features, std = (1 + self.scale_shift) * self.features, embedding.shape[-1] ** -0.5
        modulation = Dense((features,), ("proj", "channels_out"), std, self.dtype, name="embedding")(nn.silu(embedding))
        modulation = modulation[:, None, None]
        norm2 = group_norm(self.groups, self.dtype, "norm2", _EPS)
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            y = norm2(y) * (1 + scale) + shift
        else:
            y = norm2(y + modulation)
        y = nn.Dropout(self.dropout, deterministic=deterministic)(nn.silu(y))
        y = Conv(self.features, 3, self.dtype, std=0.0, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, name="shortcut")(x)
        return x + y


class ContextAttention(nn.Module):
    """Residual attention of pixels to context tokens and all pixels, with one softmax. The output starts at zero."""

    head_dim: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        """Applies the block; `mask` is False at tokens of the context that are padding."""
        b, h, w, c = x.shape
        pixels = group_norm(self.groups, self.dtype, "norm", _EPS)(x).reshape(b, h * w, c)

        def project(value, name: str):
            features, axes = (c // self.head_dim, self.head_dim), ("embed", "heads", "head_dim")
            return Dense(features, axes, value.shape[-1] ** -0.5, self.dtype, name=name)(value)

        k, v = (
            jnp.concatenate([project(tokens, f"context_{name}"), project(pixels, name)], axis=1) for name in ("k", "v")
        )
        mask = jnp.pad(mask, ((0, 0), (0, h * w)), constant_values=True)[:, None, None]
        y = attend(project(pixels, "q"), k, v, mask=mask)
        out = Dense((c,), ("heads", "head_dim", "embed"), 0.0, self.dtype, inputs=2, name="out")
        return x + out(y).reshape(x.shape)


class UNet(nn.Module):
    """U-Net that predicts from a noised image: residual blocks at decreasing resolutions, and back with skip connections.

    Changes of the resolution are residual blocks without change of the channels. The prediction starts at zero.

    Attributes:
      out_channels: channels of the output; twice those of an image with a learned variance.
      dropout: dropout rate of residual blocks during training.
    """

    options: UNetOptions
    out_channels: int
    compute: Compute = Compute()
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Int[Array, "b"],
        context: Context | None = None,
        deterministic: bool = True,
    ) -> Float32[Array, "b h w out"]:
        """Computes the output for images at timesteps `t`, in float32.

        Args:
          x: noised image, in [-1, 1] at t = 0; of an upsampler, and the resized small image as further channels. Sides are
            divisible by `UNetOptions.factor`.
          context: condition, which attention needs; see `dalle_jax.unclip.context`.

        Raises ValueError for other sides, or if the context is missing.
        """
        options, dtype, remat = self.options, self.compute.array_dtype, self.compute.remat
        if x.shape[1] % options.factor or x.shape[2] % options.factor:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} pixels; sides must be divisible by {options.factor}")
        if options.attention and context is None:
            raise ValueError("a U-Net with attention needs a context")
        embedding = TimeEmbedding(options.channels[0], 4 * options.channels[0], dtype, name="time_embedding")(t)
        if context is not None:
            embedding += context.embedding.astype(dtype)
        residual_block, attention = ResidualBlock, ContextAttention
        if remat != "none":
            residual_block = nn.remat(ResidualBlock, policy=convolution.REMAT[remat], static_argnums=(3,))
            attention = nn.remat(ContextAttention, policy=transformer.REMAT[remat])

        def apply_block(x, level: int, name: str, resize: Callable | None = None):
            sizes = (options.channels[level], options.groups, options.scale_shift, resize, self.dropout, dtype)
            return residual_block(*sizes, name=name)(x, embedding, deterministic)

        def apply_attention(x, name: str):
            return attention(options.head_dim, options.groups, dtype, name=name)(x, context.tokens, context.mask)

        def apply_pair(x, level: int, name: str, index: int):
            x = apply_block(x, level, f"{name}_block{index}")
            if level in options.attention:
                x = apply_attention(x, f"{name}_attention{index}")
            return x

        levels = range(len(options.channels))
        x = Conv(options.channels[0], 3, dtype, name="conv_in")(space_to_depth(x, options.patch))
        skips = [x]
        for level in levels:
            for index in range(options.blocks):
                x = apply_pair(x, level, f"down{level}", index)
                skips.append(x)
            if level != levels[-1]:
                x = apply_block(x, level, f"down{level}_resize", average_pool)
                skips.append(x)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = apply_block(x, -1, "middle_block0")
        if options.attention:
            x = apply_attention(x, "middle_attention")
        x = apply_block(x, -1, "middle_block1")
        for level in reversed(levels):
            for index in range(options.blocks + 1):
                x = apply_pair(jnp.concatenate([x, skips.pop()], axis=-1), level, f"up{level}", index)
            if level:
                x = apply_block(x, level, f"up{level}_resize", upsample_nearest)
            x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = nn.silu(group_norm(options.groups, dtype, "norm_out", _EPS)(x))
        axes = ("channels_in", "norm")
        features = self.out_channels * options.patch**2
        x = Conv(features, 3, dtype, std=0.0, axes=axes, out_dtype=jnp.float32, name="conv_out")(x)
        return depth_to_space(x, options.patch)
