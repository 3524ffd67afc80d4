"""The Flax module of CLIP (arXiv 2103.00020): image tower, text tower, logit scale and bias."""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from clip_jax.convnext import ConvNeXtTower
from clip_jax.mci import MCiTower
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.resnet import ResNetTower
from clip_jax.text import TextTower
from clip_jax.vision import VisionTower
from nn_jax.layers import l2_normalize
from nn_jax.patches import Patches
from train_jax.errors import ConfigError

MAX_SCALE = 100.0  # arXiv 2103.00020, section 2.5


class CLIP(nn.Module):
    """The CLIP model: an image and a text tower with a shared embedding space.

    Parameters: `vision`, `text`, `logit_scale` (a logarithm), and with the sigmoid loss `logit_bias`. A ResNet's
    running statistics are the collection `batch_stats`.

    Attributes:
      options: options of both towers; `text.vocab_size` must not be 0.
      eos_id: the end-of-text token.
      dropout: dropout rate in the towers' blocks during training; of whole branches in a ConvNeXt, none in a ResNet or MCi.
      patch_dropout: fraction of an image's patches that are dropped during training.
    """

    options: CLIPOptions
    eos_id: int
    compute: CLIPCompute = CLIPCompute()
    dropout: float = 0.0
    patch_dropout: float = 0.0

    def setup(self):
        """Makes the layers and parameters."""
        options = self.options
        if options.image.tower == "resnet":
            self.vision = ResNetTower(options, self.compute)
        elif options.image.tower == "convnext":
            self.vision = ConvNeXtTower(options, self.compute, self.dropout)
        elif options.image.tower == "mci":
            self.vision = MCiTower(options, self.compute)
        else:
            self.vision = VisionTower(options, self.compute, self.dropout, self.patch_dropout)
        self.text = TextTower(options, self.eos_id, self.compute, self.dropout)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(options.init_logit_scale), ())
        if self.has_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(options.init_logit_bias), ())

    @property
    def has_bias(self) -> bool:
        """Whether the logits have a bias: only with the sigmoid loss."""
        return self.options.loss == "sigmoid"

    def encode_image(
        self, images: Float[Array, "batch size size 3"] | Patches, deterministic: bool = True
    ) -> Float[Array, "batch dim"]:
        """Encodes normalised images as float32 embeddings of unit norm."""
        return l2_normalize(self.vision(images, deterministic))

    def project_image(self, images: Float[Array, "batch size size 3"] | Patches) -> Float[Array, "batch dim"]:
        """Encodes normalised images as float32 embeddings that are not normalised to unit length."""
        return self.vision(images, True)

    def encode_patches(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch patches dim"]:
        """Encodes each image patch as an embedding of unit norm.

        Patches are in row-major order. For a tower that is no ViT they are the positions of the last feature map.
        """
        return l2_normalize(self.vision(images, True, True))

    def encode_text(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch dim"]:
        """Encodes token ids as float32 embeddings of unit norm."""
        return l2_normalize(self.text(ids, deterministic))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the scale and bias of the logits `scale * cosine + bias`. The scale is clamped to at most 100."""
        return jnp.exp(clamp_log_scale(self.logit_scale)), self.logit_bias if self.has_bias else jnp.zeros(())

    def __call__(self, images, ids, deterministic: bool = True):
        """Returns the image embeddings, the text embeddings, the logit scale and the logit bias."""
        return (
            self.encode_image(images, deterministic),
            self.encode_text(ids, deterministic),
            *self.scale_and_bias(),
        )


@jax.custom_vjp
def clamp_log_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Clamps the logarithm of the scale to at most log 100.

    Above the limit, the backward pass drops gradients that would increase the parameter and keeps gradients that would
    decrease it, as if the parameter were clipped after every update. `jnp.minimum` alone has zero gradient there, so
    the scale could never decrease again.
    """
    return jnp.minimum(log_scale, math.log(MAX_SCALE))


def _clamp_forward(log_scale):
    return clamp_log_scale(log_scale), log_scale


def _clamp_backward(log_scale, gradient):
    # Gradient descent subtracts the gradient, so a positive gradient decreases the parameter.
    return (jnp.where((log_scale < math.log(MAX_SCALE)) | (gradient > 0), gradient, 0.0),)


clamp_log_scale.defvjp(_clamp_forward, _clamp_backward)


def build(
    options: Mapping | ConfigDict | CLIPOptions,
    vocab_size: int,
    eos_id: int,
    compute: CLIPCompute | None = None,
    dropout: float = 0.0,
    patch_dropout: float = 0.0,
) -> CLIP:
    """Builds the module from options (`config.model`). Raises ConfigError if the options are inconsistent.

    Args:
      vocab_size, eos_id: vocabulary size and end-of-text id of the tokenizer.
      compute: compute options; None: the defaults.
    """
    options = options if isinstance(options, CLIPOptions) else CLIPOptions.parse(options, "model")
    text = options.text
    if 0 < text.vocab_size < vocab_size:
        raise ConfigError(
            f"config.model.text.vocab_size = {text.vocab_size} is less than the {vocab_size} tokens of the tokenizer"
        )
    text = dataclasses.replace(text, vocab_size=text.vocab_size or vocab_size)
    return CLIP(dataclasses.replace(options, text=text), eos_id, compute or CLIPCompute(), dropout, patch_dropout)
