"""Vision transformer (arXiv 2010.11929) as the image tower, with a patch stem or a stem of convolutions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.hmlp import HMLPStem
from clip_jax.mbconv import MBConvStem
from clip_jax.options import CLIPOptions
from clip_jax.projection import project
from nn_jax.attention import Context, CrossAttention, attend
from nn_jax.convolution import Conv
from nn_jax.layers import ACTIVATIONS, Dense, add_parameter, group_norm, layer_norm, with_axis_names
from nn_jax.patches import Patches, cut_patches
from nn_jax.rotary import grid_angles, turns
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
        """Maps pixels [batch, size, size, 3] to [batch, size / patch, size / patch, width]."""
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
    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch width"]:
        """Pools tokens; `mask` is False at padding."""
        std = self.width**-0.5
        probe = self.param(
            "probe", with_axis_names(nn.initializers.xavier_uniform(), "length", "embed"), (1, self.width)
        )
        probe = jnp.broadcast_to(probe[None], (x.shape[0], 1, self.width))
        y = CrossAttention(self.width, self.heads, self.width, self.dtype, name="attention")(probe, Context(x, mask))[:, 0]
        z = layer_norm(self.eps, self.dtype, "norm")(y)
        z = Dense((self.mlp_dim,), ("embed", "mlp"), std, self.dtype, name="mlp_in")(z)
        z = ACTIVATIONS[self.activation](z)
        return y + Dense((self.width,), ("mlp", "embed"), std, self.dtype, out_dtype=jnp.float32, name="mlp_out")(z)


class AttentionalPooler(nn.Module):
    """Attention pooling with one learned query, whose output has the width `features` (arXiv 2205.01917, section 3.2)."""

    heads: int
    features: int
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch features"]:
        """Pools tokens."""
        init = with_axis_names(nn.initializers.normal(1.0), "length", "embed")
        query = layer_norm(self.eps, self.dtype, "norm_query")(self.param("query", init, (1, self.features)))
        query = jnp.broadcast_to(query[None], (x.shape[0], 1, self.features))
        x = layer_norm(self.eps, self.dtype, "norm")(x)
        attention = CrossAttention(self.features, self.heads, self.features, self.dtype, name="attention")
        return attention(query, Context(x))[:, 0]


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
        self, images: Float[Array, "batch size size 3"] | Patches, deterministic: bool = True, each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch patches embed_dim"]:
        """Computes the features of images or, with `each_patch`, of all patches in row-major order.

        For patch features, tokens attend only to themselves in the last block, and each token is pooled separately
        (arXiv 2112.01071, section 3.3). Only a tower with the option `native` encodes `Patches`, not each of them.
        """
        image, dtype = self.options.image, self.compute.array_dtype
        mask = None  # [batch, patches] of the patches that are not padding
        if image.native:
            x, mask = self._embed_native(images)
        else:
            x, patches = self._embed_patches(images.astype(dtype), deterministic)
        x = nn.with_logical_constraint(x, ("batch", None, None))
        if image.pre_norm:
            x = layer_norm(self.options.eps, dtype, "norm_pre")(x)
        rotation = None if image.rope == "none" else turns(self._angles(patches))
        attentions, attention_index = (), ()
        if each_patch:
            # A token that attends only to itself gets its own value.
            attentions = (attend, lambda q, k, v: v)
            attention_index = (0,) * (image.depth - 1) + (1,)
        attributes = {"mlp_ratio": image.mlp_ratio, "activation": self.options.activation, "eps": self.options.eps}
        attributes |= {"dropout": self.dropout, "attention_index": attention_index, **self.compute.transformer}
        attributes |= {"gated": image.gated, "branch_norms": image.branch_norms, "key_bias": image.key_bias}
        attributes |= {"qk_norm": image.qk_norm}
        transformer = Transformer(image.width, image.depth, image.heads, **attributes, name="transformer")
        block_mask = None if mask is None else mask[:, None, None]
        x = transformer(x, attentions, deterministic, block_mask, rotation=rotation)
        x = self._pool(x[:, image.registers :], each_patch, mask)
        if not image.proj:
            return x
        return project(x, self.options.embed_dim, dtype, hidden=image.proj_hidden, bias=image.proj_bias)

    def _embed_patches(self, x, deterministic: bool):
        """Embeds patches and adds position embeddings: [batch, tokens, width]. Registers and a class token come first.

        Returns the tokens and the indices of the patches [batch or 1, patches].
        """
        image, dtype = self.options.image, self.compute.array_dtype
        std = image.width**-0.5
        if image.stem == "conv":
            x = ConvStem(image.patch, image.width, dtype, name="stem")(x)
        elif image.stem == "hmlp":
            x = HMLPStem(image.width, self.options.activation, dtype, name="stem")(x, deterministic)
        elif image.stem == "mbconv":
            options = self.options.activation, self.options.eps, dtype
            x = MBConvStem(image.stem_channels, image.stem_layers, image.width, *options, name="stem")(x)
        else:
            options = {"stride": image.patch, "bias": image.stem_bias, "std": std, "axes": ("channels_in", "embed")}
            x = Conv(image.width, image.patch, dtype, **options, name="stem")(x)
        x = x.reshape(x.shape[0], -1, image.width)
        first = int(image.has_class_token)
        shape = (x.shape[1] + first, image.width)
        if image.learned_positions:
            positions = self.param("positions", with_axis_names(nn.initializers.normal(std), "length", "embed"), shape)
            x = add_parameter(x, positions[first:])
        patches = jnp.arange(x.shape[1])[None]
        if self.patch_dropout and not deterministic:
            patches = sample_patches(x.shape[:2], self.patch_dropout, self.make_rng("dropout"))
            x = jnp.take_along_axis(x, patches[:, :, None], axis=1)
        if image.has_class_token:
            token = self.param("cls", with_axis_names(nn.initializers.normal(std), "embed"), (image.width,))
            token = token + positions[0] if image.learned_positions else token
            x = _prepend(token[None], x)
        if image.registers:
            init = with_axis_names(nn.initializers.normal(std), "length", "embed")
            x = _prepend(self.param("registers", init, (image.registers, image.width)), x)
        return x, patches

    def _embed_native(self, images):
        """Embeds the patches of images of any aspect ratio, with positions resized to each grid; also returns their mask.

        Squares have the positions of the table, and no mask.
        """
        image, std = self.options.image, self.options.image.width**-0.5
        is_square = not isinstance(images, Patches)
        pixels = cut_patches(images, image.patch) if is_square else images.pixels
        axes = ("channels_in", "embed")
        x = Dense((image.width,), axes, std, self.compute.array_dtype, bias=image.stem_bias, name="stem")(pixels)
        side = image.size // image.patch
        init = with_axis_names(nn.initializers.normal(std), "length", "embed")
        positions = self.param("positions", init, (side * side, image.width))
        if is_square:
            return add_parameter(x, positions), None
        grid = jnp.maximum(images.grid, 1)  # rows that pad a batch have no patches
        places = jnp.arange(x.shape[1])
        weights = position_weights(places, grid, side)
        positions = jnp.einsum("bln,nd->bld", weights, positions, precision=jax.lax.Precision.HIGHEST)
        return add_parameter(x, positions), places[None] < jnp.prod(grid, axis=1, keepdims=True)

    def _angles(self, patches: Int[Array, "#batch patches"]) -> Float[Array, "#batch tokens pairs"]:
        """Returns the angles of rotary embeddings of patches. The tokens before them are not turned."""
        image, side = self.options.image, self.options.image.size // self.options.image.patch
        options = {"columns_first": image.rope == "columns_first", "offset": image.rope_offset}
        table = grid_angles((side, side), image.width // image.heads, stretch=(image.rope_grid or side) / side, **options)
        return jnp.pad(jnp.asarray(table)[patches], ((0, 0), (image.num_prefix, 0), (0, 0)))

    def _pool(self, x, each_patch: bool, mask):
        image, eps, dtype = self.options.image, self.options.eps, self.compute.array_dtype
        norm = layer_norm(eps, dtype, "norm_post")
        first = int(image.has_class_token)
        if image.pool == "cls":
            return norm(x[:, first:] if each_patch else x[:, 0])
        if image.pool == "mean":
            x = x[:, first:]
            if each_patch:
                return norm(x)
            where = None if mask is None else mask[:, :, None]
            if image.norm_after_pool:
                return norm(jnp.mean(x, axis=1, where=where))
            return jnp.mean(norm(x), axis=1, where=where)
        heads = image.pool_heads or image.heads
        if each_patch:  # each patch is pooled alone
            x = x[:, first:]
            num_patches, x = x.shape[1], x.reshape(-1, 1, image.width)
        if image.pool == "query":
            pooled = norm(AttentionalPooler(heads, self.options.embed_dim, eps, dtype, name="head")(x))
        else:
            mlp_dim = round((image.pool_mlp_ratio or image.mlp_ratio) * image.width)
            pooled = MapHead(image.width, heads, mlp_dim, self.options.activation, eps, dtype, name="head")(norm(x), mask)
        return pooled.reshape(-1, num_patches, pooled.shape[-1]) if each_patch else pooled


def _prepend(tokens, x):
    """Puts the same tokens [n, width] before those of each image."""
    return jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)).astype(x.dtype), x], axis=1)


def sample_patches(shape: tuple[int, int], rate: float, key) -> Int[Array, "batch kept"]:
    """Samples which of `shape` = (batch, patches) are kept, in order, if a fraction is dropped (arXiv 2212.00794)."""
    num_kept = max(1, int((1 - rate) * shape[1]))
    # Not `lax.top_k`, for which the partitioner gathers the noise of the whole batch on every device.
    return jnp.sort(jnp.argsort(jax.random.uniform(key, shape), axis=1)[:, :num_kept])


def position_weights(
    places: Int[Array, "places"], grid: Int[Array, "batch 2"], side: int
) -> Float[Array, "batch places positions"]:
    """Computes the weights of side x side positions for patches in row-major order of a grid of rows and columns.

    Equal to antialiased bilinear interpolation by PyTorch, TensorFlow and JAX. Places outside the grid get some row's.
    """
    rows, columns = grid[:, :1, None], grid[:, 1:, None]  # [batch, 1, 1]
    places, centres = places[None, :, None], jnp.arange(side)[None, None] + 0.5

    def weigh(index, count):
        distances = jnp.abs(centres - (index + 0.5) * side / count)
        weights = jnp.maximum(1 - distances / jnp.maximum(side / count, 1), 0)
        return weights / weights.sum(axis=-1, keepdims=True)

    of_rows = weigh(jnp.minimum(places // columns, rows - 1), rows)
    of_columns = weigh(places % columns, columns)
    return (of_rows[..., None] * of_columns[..., None, :]).reshape(*of_rows.shape[:2], side * side)


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
