"""Vision transformer (arXiv 2010.11929) as the image tower, with a patch stem or a convolutional stem."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.options import CLIPOptions
from nn_jax.attention import Context, CrossAttention, attend
from nn_jax.convolution import Conv
from nn_jax.layers import ACTIVATIONS, Dense, add_parameter, group_norm, layer_norm, with_axis_names
from nn_jax.transformer import Transformer
from train_jax.compute import TransformerCompute


class ConvStem(nn.Module):
    """Convolutional stem (arXiv 2106.14881).

    3 x 3 convolutions with stride 2, group norm and ReLU down to the patch grid, then a 1 x 1 convolution.
    """

    patch: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        steps = int(math.log2(self.patch))
        for index in range(steps):
            channels = self.width // 2 ** (steps - 1 - index)
            x = Conv(channels, 3, self.dtype, stride=2, bias=False, std="he", name=f"conv_{index}")(x)
            x = nn.relu(group_norm(8, self.dtype, f"norm_{index}")(x))
        axes = ("channels_in", "embed")
        return Conv(self.width, 1, self.dtype, std=self.width**-0.5, axes=axes, name="proj")(x)


class MapHead(nn.Module):
    """Multi-head attention pooling with a learned query, followed by an MLP (arXiv 2106.04560, section 3.1)."""

    width: int
    heads: int
    mlp_dim: int
    activation: str
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        std = self.width**-0.5
        probe = self.param(
            "probe", with_axis_names(nn.initializers.xavier_uniform(), "length", "embed"), (1, self.width)
        )
        probe = jnp.broadcast_to(probe[None], (x.shape[0], 1, self.width))
        y = CrossAttention(self.width, self.heads, self.width, self.dtype, name="attention")(probe, Context(x))[:, 0]
        z = layer_norm(self.eps, self.dtype, "norm")(y)
        z = Dense((self.mlp_dim,), ("embed", "mlp"), std, self.dtype, name="mlp_in")(z)
        z = ACTIVATIONS[self.activation](z)
        return y + Dense((self.width,), ("mlp", "embed"), std, self.dtype, out_dtype=jnp.float32, name="mlp_out")(z)


class VisionTower(nn.Module):
    """Vision transformer: encodes normalised images as features of width `embed_dim`.

    Features are float32 if the last layer is dense (`proj`, or the "map" pool), else of the compute dtype.

    Attributes:
      dropout: dropout rate in the blocks during training.
      patch_dropout: fraction of the patches of each image that are dropped during training (arXiv 2212.00794).
    """

    options: CLIPOptions
    compute: TransformerCompute
    dropout: float
    patch_dropout: float

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True, each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch patches embed_dim"]:
        """Computes the features of images or, with `each_patch`, of all patches in row-major order.

        For patch features, tokens attend only to themselves in the last block, and each token is pooled separately
        (arXiv 2112.01071, section 3.3).
        """
        image, dtype = self.options.image, self.compute.array_dtype
        x = self._embed_patches(images.astype(dtype), deterministic)
        x = nn.with_logical_constraint(x, ("batch", None, None))
        if image.pre_norm:
            x = layer_norm(self.options.eps, dtype, "norm_pre")(x)
        attentions, attention_index = (), ()
        if each_patch:
            attentions = (attend, lambda q, k, v: v)  # a token that attends only to itself gets its own value
            attention_index = (0,) * (image.depth - 1) + (1,)
        attributes = {"mlp_ratio": image.mlp_ratio, "activation": self.options.activation, "eps": self.options.eps}
        attributes |= {"dropout": self.dropout, "attention_index": attention_index, **self.compute.transformer}
        transformer = Transformer(image.width, image.depth, image.heads, **attributes, name="transformer")
        x = self._pool(transformer(x, attentions, deterministic), each_patch)
        if not image.proj:
            return x
        attributes = {"bias": False, "out_dtype": jnp.float32, "name": "proj"}
        return Dense((self.options.embed_dim,), ("embed", "proj"), image.width**-0.5, dtype, **attributes)(x)

    def _embed_patches(self, x, deterministic: bool):
        """Embeds patches and adds position embeddings: [batch, tokens, width]. The class token, if any, comes first."""
        image, dtype = self.options.image, self.compute.array_dtype
        std = image.width**-0.5
        if image.stem == "conv":
            x = ConvStem(image.patch, image.width, dtype, name="stem")(x)
        else:
            options = {"stride": image.patch, "bias": image.stem_bias, "std": std, "axes": ("channels_in", "embed")}
            x = Conv(image.width, image.patch, dtype, **options, name="stem")(x)
        x = x.reshape(x.shape[0], -1, image.width)
        first = int(image.pool == "cls")
        shape = (x.shape[1] + first, image.width)
        positions = self.param("positions", with_axis_names(nn.initializers.normal(std), "length", "embed"), shape)
        x = add_parameter(x, positions[first:])
        if self.patch_dropout and not deterministic:
            x = patch_dropout(x, self.patch_dropout, self.make_rng("dropout"))
        if image.pool == "cls":
            token = self.param("cls", with_axis_names(nn.initializers.normal(std), "embed"), (image.width,))
            token = jnp.broadcast_to(token + positions[0], (x.shape[0], 1, image.width)).astype(dtype)
            x = jnp.concatenate([token, x], axis=1)
        return x

    def _pool(self, x, each_patch: bool):
        image, eps, dtype = self.options.image, self.options.eps, self.compute.array_dtype
        norm = layer_norm(eps, dtype, "norm_post")
        if image.pool == "cls":
            return norm(x[:, 1:] if each_patch else x[:, 0])
        if image.pool == "mean":
            return norm(x) if each_patch else jnp.mean(norm(x), axis=1)
        mlp_dim = round(image.mlp_ratio * image.width)
        head = MapHead(image.width, image.heads, mlp_dim, self.options.activation, eps, dtype, name="head")
        if each_patch:
            return head(norm(x).reshape(-1, 1, image.width)).reshape(x.shape)
        return head(norm(x))


def patch_dropout(x: Float[Array, "batch length width"], rate: float, key) -> Float[Array, "batch kept width"]:
    """Drops a random fraction of each image's patches (arXiv 2212.00794). The other patches keep their order."""
    num_kept = max(1, int((1 - rate) * x.shape[1]))
    # Not `lax.top_k`, for which the partitioner gathers the noise of the whole batch on every device.
    positions = jnp.argsort(jax.random.uniform(key, x.shape[:2]), axis=1)[:, :num_kept]
    return jnp.take_along_axis(x, jnp.sort(positions, axis=1)[:, :, None], axis=1)


def resize_positions(
    positions: Float[np.ndarray, "old width"], num_patches: int, num_prefix: int
) -> Float[np.ndarray, "new width"]:
    """Interpolates position embeddings to another number of patches, with antialiased bicubic interpolation.

    Args:
      num_patches: new number of patches, a square number.
      num_prefix: number of leading rows that are not patches (the class token), which are kept unchanged.

    Equal to open_clip's `resize_pos_embed`, which uses PyTorch's antialiased bicubic filter.
    """
    old, new = math.isqrt(len(positions) - num_prefix), math.isqrt(num_patches)
    if old * old != len(positions) - num_prefix or new * new != num_patches:
        raise ValueError(f"{len(positions) - num_prefix} -> {num_patches} positions: both must be square numbers")
    if old == new:
        return positions
    grid = positions[num_prefix:].reshape(old, old, -1)
    weights = _bicubic_weights(old, new)
    resized = np.einsum("yr,xc,rcd->yxd", weights, weights, grid.astype(np.float64))
    return np.concatenate([positions[:num_prefix], resized.reshape(new * new, -1).astype(positions.dtype)])


def _bicubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Computes the resampling weights of Pillow's and PyTorch's antialiased bicubic filter (a = -1/2)."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * old / new
    t = np.abs((np.arange(old)[None] + 0.5 - centres) / scale)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
