"""The image tower as a vision transformer (arXiv 2010.11929) behind a patch or a convolutional stem."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nn_jax.attention import CrossAttention
from nn_jax.convolution import Conv
from nn_jax.layers import ACTIVATIONS, Dense, add_parameter, group_norm, layer_norm, with_axis_names
from nn_jax.transformer import Transformer

STEMS = ("patch", "conv")
POOLS = ("cls", "mean", "map")


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
            x = Conv(channels, 3, self.dtype, stride=2, bias=False, std="he", name=f"conv_{number}")(x)
            x = nn.relu(group_norm(8, self.dtype, f"norm_{number}")(x))
        axes = ("channels_in", "embed")
        return Conv(self.width, 1, self.dtype, std=self.width**-0.5, axes=axes, name="proj")(x)


class MapHead(nn.Module):
    """Multi-head attention pooling: one learnt query looks at all patches, then an MLP (arXiv 2106.04560, section 3.1)."""

    width: int
    heads: int
    mlp_dim: int
    activation: str
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        std = self.width**-0.5
        probe = self.param("probe", with_axis_names(nn.initializers.xavier_uniform(), "length", "embed"), (1, self.width))
        probe = jnp.broadcast_to(probe[None], (x.shape[0], 1, self.width))
        y = CrossAttention(self.heads, self.width, self.dtype, name="attention")(probe, x)[:, 0]
        z = layer_norm(self.eps, self.dtype, "norm")(y)
        z = Dense((self.mlp_dim,), ("embed", "mlp"), std, self.dtype, name="mlp_in")(z)
        z = ACTIVATIONS[self.activation](z)
        return y + Dense((self.width,), ("mlp", "embed"), std, self.dtype, out_dtype=jnp.float32, name="mlp_out")(z)


class VisionTower(nn.Module):
    """Pixels -> features of width `embed_dim`; float32 wherever a product makes them (`proj`, or the "map" pool's MLP).

    Attributes:
      size, patch: side of the picture and of a patch, in pixels.
      stem: "patch", one strided convolution, or "conv" (`ConvStem`).
      stem_bias: whether the strided convolution has a bias.
      pool: "cls", a learnt token that sees all patches, "mean" over the patches, or "map" (`MapHead`).
      pre_norm: a layer norm before the blocks, as CLIP has.
      proj: a linear map to `embed_dim` at the end; without it `embed_dim` is `width`.
      patch_dropout: share of the patches left out of each picture while training (arXiv 2212.00794).
      blocks: options of `Transformer`.
    """

    size: int
    patch: int
    width: int
    embed_dim: int
    stem: str
    stem_bias: bool
    pool: str
    pre_norm: bool
    proj: bool
    patch_dropout: float
    eps: float
    dtype: DTypeLike
    blocks: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True, each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch patches embed_dim"]:
        """Features of pictures; with `each_patch` of their patches, row by row.

        A patch's feature is what the tower would say of it alone, after all blocks but the last have told it about the
        others: in the last block it sees only itself, and it is pooled by itself (arXiv 2112.01071, section 3.3).
        """
        x = self._patches(images.astype(self.dtype), deterministic)
        x = nn.with_logical_constraint(x, ("batch", None, None))
        if self.pre_norm:
            x = layer_norm(self.eps, self.dtype, "norm_pre")(x)
        masks, mask_index = None, ()
        if each_patch:
            length = x.shape[1]
            masks = jnp.stack([jnp.ones((length, length), bool), jnp.eye(length, dtype=bool)])[:, None, None]
            mask_index = (0,) * (self.blocks["depth"] - 1) + (1,)
        options = {"eps": self.eps, "dtype": self.dtype, "mask_index": mask_index, "name": "transformer"}
        x = Transformer(self.width, **self.blocks, **options)(x, masks, deterministic)
        x = self._pooled(x, each_patch)
        if not self.proj:
            return x
        options = {"bias": False, "out_dtype": jnp.float32, "name": "proj"}
        return Dense((self.embed_dim,), ("embed", "proj"), self.width**-0.5, self.dtype, **options)(x)

    def _patches(self, x, deterministic: bool):
        """Embedded patches with their positions, the class token first: [batch, tokens, width]."""
        std = self.width**-0.5
        if self.stem == "conv":
            x = ConvStem(self.patch, self.width, self.dtype, name="stem")(x)
        else:
            options = {"stride": self.patch, "bias": self.stem_bias, "std": std, "axes": ("channels_in", "embed")}
            x = Conv(self.width, self.patch, self.dtype, **options, name="stem")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = int(self.pool == "cls")
        shape = (x.shape[1] + first, self.width)
        positions = self.param("positions", with_axis_names(nn.initializers.normal(std), "length", "embed"), shape)
        x = add_parameter(x, positions[first:])
        if self.patch_dropout and not deterministic:
            x = patch_dropout(x, self.patch_dropout, self.make_rng("dropout"))
        if self.pool == "cls":
            token = self.param("cls", with_axis_names(nn.initializers.normal(std), "embed"), (self.width,))
            token = jnp.broadcast_to(token + positions[0], (x.shape[0], 1, self.width)).astype(self.dtype)
            x = jnp.concatenate([token, x], axis=1)
        return x

    def _pooled(self, x, each_patch: bool):
        norm = layer_norm(self.eps, self.dtype, "norm_post")
        if self.pool == "cls":
            return norm(x[:, 1:] if each_patch else x[:, 0])
        if self.pool == "mean":
            return norm(x) if each_patch else jnp.mean(norm(x), axis=1)
        blocks = self.blocks
        mlp_dim = round(blocks["mlp_ratio"] * self.width)
        head = MapHead(self.width, blocks["heads"], mlp_dim, blocks["activation"], self.eps, self.dtype, name="head")
        if each_patch:
            return head(norm(x).reshape(-1, 1, self.width)).reshape(x.shape)
        return head(norm(x))


def patch_dropout(x: Float[Array, "batch length width"], rate: float, key) -> Float[Array, "batch kept width"]:
    """Drops a random share of each picture's patches (arXiv 2212.00794); the others keep their order."""
    kept = max(1, int((1 - rate) * x.shape[1]))
    _, positions = jax.lax.top_k(jax.random.uniform(key, x.shape[:2]), kept)
    return jnp.take_along_axis(x, jnp.sort(positions, axis=1)[:, :, None], axis=1)


def resize_positions(
    positions: Float[np.ndarray, "old width"], patches: int, first: int
) -> Float[np.ndarray, "new width"]:
    """Position embeddings for another number of patches: the square grid is resized, bicubic and antialiased.

    Args:
      patches: how many there shall be, a square number.
      first: leading rows that are no patches (the class token's), which stay as they are.

    The same as open_clip's `resize_pos_embed`, which resizes with PyTorch's antialiased bicubic filter.
    """
    old, new = math.isqrt(len(positions) - first), math.isqrt(patches)
    if old * old != len(positions) - first or new * new != patches:
        raise ValueError(f"{len(positions) - first} -> {patches} positions: both must be square numbers")
    if old == new:
        return positions
    grid = positions[first:].reshape(old, old, -1)
    weights = _bicubic(old, new)
    resized = np.einsum("yr,xc,rcd->yxd", weights, weights, grid.astype(np.float64))
    return np.concatenate([positions[:first], resized.reshape(new * new, -1).astype(positions.dtype)])


def _bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Resampling weights of Pillow's and PyTorch's antialiased bicubic filter (a = -1/2)."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * old / new
    t = np.abs((np.arange(old)[None] + 0.5 - centres) / scale)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
