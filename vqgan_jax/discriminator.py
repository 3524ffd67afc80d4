"""PatchGAN discriminator (arXiv 1611.07004, section 3.2.2), with one logit per image patch."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from nn_jax.convolution import Conv
from nn_jax.layers import with_axis_names
from train_jax.compute import Compute
from train_jax.options import Options, option


class Discriminator(nn.Module):
    """Patch discriminator: pixels in [-1, 1] -> logits of overlapping patches.

    Attributes:
      channels: channels of the first convolution; each layer doubles the number, up to a factor of 8.
      layers: number of convolutions of stride 2.
      norm: "group" for GroupNorm; "batch", as in taming, for BatchNorm over the global batch, with running statistics in
        the collection `batch_stats`.
    """

    channels: int
    layers: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool = True) -> Float[Array, "b h2 w2"]:
        """Computes the logits of patches in float32; `train`: norms use the statistics of the batch."""

        def conv(features: int, stride: int, index: int, bias: bool, x, out_dtype=None):
            axes = ("channels_in", "norm" if features == 1 else "channels_out")
            options = {"stride": stride, "padding": 1, "bias": bias, "std": 0.02, "axes": axes, "out_dtype": out_dtype}
            return Conv(features, 4, self.dtype, name=f"conv{index}", **options)(x)

        x = nn.leaky_relu(conv(self.channels, 2, 0, True, images.astype(self.dtype)), 0.2)
        for index in range(1, self.layers + 1):
            features = self.channels * min(2**index, 8)
            stride = 2 if index < self.layers else 1
            x = conv(features, stride, index, self.norm == "group", x)
            x = nn.leaky_relu(self._normalize(x, f"norm{index}", train), 0.2)
        return conv(1, 1, self.layers + 1, True, x, jnp.float32)[..., 0]

    def _normalize(self, x, name: str, train: bool):
        # Scales are initialised from N(1, 0.02), as in pix2pix.
        normal = nn.initializers.normal(0.02)
        scale = with_axis_names(lambda key, shape, dtype=jnp.float32: 1 + normal(key, shape, dtype), "norm")
        bias = with_axis_names(nn.initializers.zeros_init(), "norm")
        options = {"scale_init": scale, "bias_init": bias, "dtype": self.dtype, "name": name, "epsilon": 1e-5}
        if self.norm == "batch":
            return nn.BatchNorm(not train, momentum=0.9, use_fast_variance=False, **options)(x)
        return nn.GroupNorm(min(32, x.shape[-1] // 2), use_fast_variance=False, **options)(x)


@dataclasses.dataclass(frozen=True)
class DiscriminatorOptions(Options):
    """Options of the discriminator."""

    channels: int = option(64, "channels of the first convolution, doubled by each layer, at most by 8", least=2)
    layers: int = option(3, "number of convolutions of stride 2", least=1)
    norm: str = option("group", "normalisation; batch: over the global batch, as in taming", choices=("group", "batch"))


def build(options: ConfigDict, compute: Compute) -> Discriminator:
    """Builds the discriminator from `config.discriminator`. Raises ConfigError for invalid options."""
    options = DiscriminatorOptions.parse(options, "discriminator")
    return Discriminator(options.channels, options.layers, options.norm, compute.array_dtype)
