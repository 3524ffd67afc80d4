"""ConvNeXt as the image tower (arXiv 2201.03545, section 2): a convolutional network with the parts of a transformer."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.options import CLIPOptions
from clip_jax.projection import project
from nn_jax.convolution import Conv, DepthwiseConv
from nn_jax.layers import ACTIVATIONS, Dense, layer_norm, with_axis_names
from nn_jax.transformer import REMAT
from train_jax.compute import Compute

_WINDOW = 7  # side of the depthwise convolutions
_STEM = 4  # side of the stem's patches
_MLP_RATIO = 4
_STD = 0.02  # of the initialisation
_LAYER_SCALE = 1e-6  # initial value; arXiv 2103.17239


class ConvNeXtBlock(nn.Module):
    """ConvNeXt block: x + layer_scale * mlp(norm(depthwise convolution(x))).

    Attributes:
      dropout: probability with which the branch of an image is left out in training (arXiv 1603.09382).
    """

    activation: str
    eps: float
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], deterministic: bool):
        """Applies the block; sizes are kept."""
        channels = x.shape[-1]
        y = layer_norm(self.eps, self.dtype, "norm")(DepthwiseConv(_WINDOW, self.dtype, std=_STD, name="conv")(x))
        y = Dense((_MLP_RATIO * channels,), ("embed", "mlp"), _STD, self.dtype, name="mlp_in")(y)
        y = ACTIVATIONS[self.activation](y)
        y = Dense((channels,), ("mlp", "embed"), _STD, self.dtype, name="mlp_out")(y)
        init = with_axis_names(nn.initializers.constant(_LAYER_SCALE), "norm")
        y = (y * self.param("layer_scale", init, (channels,))[None, None, None]).astype(self.dtype)
        return x + nn.Dropout(self.dropout, broadcast_dims=(1, 2, 3))(y, deterministic=deterministic)


class ConvNeXtTower(nn.Module):
    """ConvNeXt: encodes normalised images as float32 features of width `embed_dim`.

    The first stage has `image.width` channels, and each other stage twice as many as the one before.

    Attributes:
      dropout: rate of stochastic depth; see `ConvNeXtBlock`.
    """

    options: CLIPOptions
    compute: Compute
    dropout: float

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True, each_patch: bool = False
    ) -> Float[Array, "batch embed_dim"] | Float[Array, "batch patches embed_dim"]:
        """Computes the features of images or, with `each_patch`, of all positions of the last feature map."""
        image, eps, dtype = self.options.image, self.options.eps, self.compute.array_dtype
        block = ConvNeXtBlock
        if self.compute.remat != "none":
            block = nn.remat(ConvNeXtBlock, policy=REMAT[self.compute.remat], static_argnums=(2,))
        x = Conv(image.width, _STEM, dtype, stride=_STEM, std=_STD, name="stem")(images.astype(dtype))
        x = layer_norm(eps, dtype, "norm_stem")(x)
        for stage, blocks in enumerate(image.layers):
            if stage:
                x = layer_norm(eps, dtype, f"norm{stage + 1}")(x)
                x = Conv(image.width * 2**stage, 2, dtype, stride=2, std=_STD, name=f"downsample{stage + 1}")(x)
            for index in range(blocks):
                name = f"stage{stage + 1}_{index}"
                x = block(self.options.activation, eps, self.dropout, dtype, name=name)(x, deterministic)
        x = nn.with_logical_constraint(x, ("batch", None, None, None))
        x = x.reshape(x.shape[0], -1, x.shape[-1]) if each_patch else jnp.mean(x, axis=(1, 2))
        x = layer_norm(eps, dtype, "norm_post")(x)
        return project(x, self.options.embed_dim, dtype, hidden=image.proj_hidden, bias=image.proj_bias)
