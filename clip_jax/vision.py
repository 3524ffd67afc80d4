"""The image tower: a vision transformer (arXiv 2010.11929) behind a patch or a convolutional stem."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nn_jax.layers import Dense, conv, group_norm, layer_norm, named
from nn_jax.transformer import Transformer

STEMS = ("patch", "conv")
POOLS = ("cls", "mean")


class ConvStem(nn.Module):
    """Early convolutions (arXiv 2106.14881): 3 x 3 with stride 2, norm and ReLU down to the patch grid, then 1 x 1."""

    patch: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        steps = int(math.log2(self.patch))
        for number in range(steps):
            channels = self.width // 2 ** (steps - 1 - number)
            axes = ("channels_in", "channels_out")
            x = conv(channels, 3, 2, axes=axes, std=None, dtype=self.dtype, name=f"conv_{number}", bias=False)(x)
            x = nn.relu(group_norm(8, self.dtype, f"norm_{number}")(x))
        axes = ("channels_in", "embed")
        return conv(self.width, 1, 1, axes=axes, std=self.width**-0.5, dtype=self.dtype, name="proj", bias=True)(x)


class VisionTower(nn.Module):
    """Pixels -> features of width `embed_dim`.

    Attributes:
      size, patch: side of the picture and of a patch, in pixels.
      stem: "patch", one strided convolution, or "conv" (`ConvStem`).
      pool: "cls", a learnt token that sees all patches, or "mean" over the patches.
      pre_norm: a layer norm before the blocks, as CLIP has.
      blocks: options of `Transformer`.
    """

    size: int
    patch: int
    width: int
    embed_dim: int
    stem: str
    pool: str
    pre_norm: bool
    eps: float
    dtype: DTypeLike
    blocks: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True
    ) -> Float[Array, "batch embed_dim"]:
        std = self.width**-0.5
        x = images.astype(self.dtype)
        if self.stem == "conv":
            x = ConvStem(self.patch, self.width, self.dtype, name="stem")(x)
        else:
            axes = ("channels_in", "embed")
            x = conv(self.width, self.patch, self.patch, axes=axes, std=std, dtype=self.dtype, name="stem", bias=False)(
                x
            )
        x = x.reshape(x.shape[0], -1, self.width)  # (B, T, D)
        if self.pool == "cls":
            token = self.param("cls", named(nn.initializers.normal(std), "embed"), (self.width,))
            token = jnp.broadcast_to(token.astype(self.dtype)[None, None, :], (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        positions = self.param("positions", named(nn.initializers.normal(std), "length", "embed"), x.shape[1:])
        x = x + positions.astype(self.dtype)[None]
        x = nn.with_logical_constraint(x, ("batch", None, None))
        if self.pre_norm:
            x = layer_norm(self.eps, self.dtype, "norm_pre")(x)
        x = Transformer(self.width, **self.blocks, eps=self.eps, dtype=self.dtype, name="transformer")(
            x, None, deterministic
        )
        x = x[:, :1] if self.pool == "cls" else x
        x = layer_norm(self.eps, self.dtype, "norm_post")(x)
        x = jnp.mean(x, axis=1)
        return Dense((self.embed_dim,), ("embed", "proj"), std, self.dtype, bias=False, name="proj")(x)
