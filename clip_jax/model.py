"""CLIP (arXiv 2103.00020): two towers, and a scale (and bias) that turn cosines into logits."""

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
    """Image and text towers with a shared space. Parameters: `vision`, `text`, `logit_scale` (a logarithm), and with
    the sigmoid loss `logit_bias`. A ResNet's running statistics are the collection `batch_stats`.

    Attributes:
      options: with the number of embedded tokens.
      eos_id: the end-of-text token.
      dropout: of the towers' blocks, in training.
      patch_dropout: share of a picture's patches that are left out in training.
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
        """Whether logits have a bias: whether they are for the sigmoid loss."""
        return self.options.loss == "sigmoid"

    def encode_image(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True
    ) -> Float[Array, "batch dim"]:
        """Normalised pixels -> float32 embeddings of unit norm."""
        return l2_normalize(self.vision(images, deterministic))

    def encode_patches(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch patches dim"]:
        """Normalised pixels -> an embedding of unit norm for each patch, row by row (of a ResNet: each place of its map)."""
        return l2_normalize(self.vision(images, True, True))

    def encode_text(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch dim"]:
        """Token ids -> float32 embeddings of unit norm."""
        return l2_normalize(self.text(ids, deterministic))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What logits are made with: `scale * cosine + bias`; the scale is at most 100 (`clamp_log_scale`)."""
        return jnp.exp(clamp_log_scale(self.logit_scale)), self.logit_bias if self.has_bias else jnp.zeros(())

    def __call__(self, images, ids, deterministic: bool = True):
        """Image embeddings, text embeddings, scale and bias."""
        return (
            self.encode_image(images, deterministic),
            self.encode_text(ids, deterministic),
            *self.scale_and_bias(),
        )


@jax.custom_vjp
def clamp_log_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of the scale, at most log 100.

    Past the limit, a gradient that would lead farther out is dropped and one that leads back is kept, as if the
    parameter were clipped after every update. A plain minimum has no gradient there: one update too far, and the scale
    would stay at its limit for ever.
    """
    return jnp.minimum(log_scale, math.log(MAX_SCALE))


def _clamp_forward(log_scale):
    return clamp_log_scale(log_scale), log_scale


def _clamp_backward(log_scale, gradient):
    # Descent goes against the gradient: a positive one leads back.
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
    """The module that options (`config.model`) describe. ConfigError if none can be.

    Args:
      vocab_size, eos_id: of the tokenizer.
      compute: None: as by default.
    """
    options = options if isinstance(options, CLIPOptions) else CLIPOptions.parse(options, "model")
    text = options.text
    if 0 < text.vocab_size < vocab_size:
        raise ConfigError(
            f"config.model.text.vocab_size = {text.vocab_size} is less than the {vocab_size} tokens of the tokenizer"
        )
    text = dataclasses.replace(text, vocab_size=text.vocab_size or vocab_size)
    return CLIP(dataclasses.replace(options, text=text), eos_id, compute or CLIPCompute(), dropout, patch_dropout)
