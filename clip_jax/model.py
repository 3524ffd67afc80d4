"""CLIP (arXiv 2103.00020): an image and a text tower, and the scale and bias of their logits."""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.resnet import ResNetTower
from clip_jax.text import TextTower
from clip_jax.vision import VisionTower
from nn_jax.layers import l2_normalize
from train_jax.errors import ConfigError

MAX_SCALE = 100.0  # arXiv 2103.00020, section 2.5


class CLIP(nn.Module):
    """Image and text towers with a shared embedding space.

    Parameters: `vision`, `text`, `logit_scale` (a logarithm), and with the sigmoid loss `logit_bias`. A ResNet's
    running statistics are the collection `batch_stats`.

    Attributes:
      options: of both towers; `text.vocab_size` must not be 0.
      eos_id: the end-of-text token.
      dropout: rate in the towers' blocks, in training.
      patch_dropout: share of an image's patches that are dropped in training.
    """

    options: CLIPOptions
    eos_id: int
    compute: CLIPCompute = CLIPCompute()
    dropout: float = 0.0
    patch_dropout: float = 0.0

    def setup(self):
        options = self.options
        if options.image.tower == "resnet":
            self.vision = ResNetTower(options, self.compute)
        else:
            self.vision = VisionTower(options, self.compute, self.dropout, self.patch_dropout)
        self.text = TextTower(options, self.eos_id, self.compute, self.dropout)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(options.init_logit_scale), ())
        if self.has_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(options.init_logit_bias), ())

    @property
    def has_bias(self) -> bool:
        """Whether logits have a bias, as for the sigmoid loss."""
        return self.options.loss == "sigmoid"

    def encode_image(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True
    ) -> Float[Array, "batch dim"]:
        """Encodes normalised pixels as float32 embeddings of unit norm."""
        return l2_normalize(self.vision(images, deterministic))

    def encode_patches(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch patches dim"]:
        """Encodes each patch (of a ResNet: position of the last feature map), row by row, as a unit-norm embedding."""
        return l2_normalize(self.vision(images, True, True))

    def encode_text(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch dim"]:
        """Encodes token ids as float32 embeddings of unit norm."""
        return l2_normalize(self.text(ids, deterministic))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns scale and bias of the logits, `scale * cosine + bias`; the scale is clamped to at most 100."""
        return jnp.exp(clamp_log_scale(self.logit_scale)), self.logit_bias if self.has_bias else jnp.zeros(())

    def __call__(self, images, ids, deterministic: bool = True):
        """Returns image embeddings, text embeddings, scale and bias."""
        return (
            self.encode_image(images, deterministic),
            self.encode_text(ids, deterministic),
            *self.scale_and_bias(),
        )


@jax.custom_vjp
def clamp_log_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Clamps the logarithm of the scale to at most log 100.

    Above the limit, a gradient that increases the parameter is dropped and one that decreases it is passed on, as if
    the parameter were clipped after every update. The gradient of a plain minimum is zero there: after one update too
    far the scale would never change again.
    """
    return jnp.minimum(log_scale, math.log(MAX_SCALE))


def _clamp_forward(log_scale):
    return clamp_log_scale(log_scale), log_scale


def _clamp_backward(log_scale, gradient):
    # Descent goes against the gradient: a positive one decreases the parameter.
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
    """Builds the module of options (`config.model`). Raises ConfigError if they contradict each other.

    Args:
      vocab_size, eos_id: of the tokenizer.
      compute: None for the defaults.
    """
    options = options if isinstance(options, CLIPOptions) else CLIPOptions.parse(options, "model")
    text = options.text
    if 0 < text.vocab_size < vocab_size:
        raise ConfigError(
            f"config.model.text.vocab_size = {text.vocab_size} is less than the {vocab_size} tokens of the tokenizer"
        )
    text = dataclasses.replace(text, vocab_size=text.vocab_size or vocab_size)
    return CLIP(dataclasses.replace(options, text=text), eos_id, compute or CLIPCompute(), dropout, patch_dropout)
