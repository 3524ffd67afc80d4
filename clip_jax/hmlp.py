"""Stem of convolutions without overlap (hMLP, arXiv 2203.09795, section 5), with batch norms, as in MobileCLIP-B."""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.resnet import batch_norm
from nn_jax.convolution import Conv
from nn_jax.layers import ACTIVATIONS


class HMLPStem(nn.Module):
    """Maps images to a sixteenth of their sides and `width` channels: windows of 4, 2 and 2 pixels, which do not overlap.

    The last convolution has a bias, as in MobileCLIP (arXiv 2311.17049), in place of hMLP's last norm.
    """

    width: int
    activation: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b size size 3"], deterministic: bool = True) -> Float[Array, "b grid grid width"]:
        """Maps pixels to the positions of the transformer."""
        for index, window in enumerate((4, 2), 1):
            x = Conv(self.width // 4, window, self.dtype, stride=window, bias=False, std="he", name=f"conv{index}")(x)
            x = ACTIVATIONS[self.activation](batch_norm(f"norm{index}", self.dtype, deterministic)(x))
        axes = ("channels_in", "embed")
        return Conv(self.width, 2, self.dtype, stride=2, std=self.width**-0.5, axes=axes, name="proj")(x)
