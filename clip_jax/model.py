"""CLIP (arXiv 2103.00020): two towers, and a scale (and bias) that turn cosines into logits."""

import math
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from clip_jax.text import TextTower
from clip_jax.vision import POOLS, STEMS, VisionTower
from nn_jax.layers import ACTIVATIONS, normalize
from nn_jax.transformer import REMAT
from train_jax.errors import ConfigError

LOSSES = ("softmax", "sigmoid")
DTYPES = {"float32": jnp.dtype("float32"), "bfloat16": jnp.dtype("bfloat16")}
MAX_SCALE = 100.0  # arXiv 2103.00020, section 2.5


class CLIP(nn.Module):
    """Image and text towers with a shared space. Parameters: `vision`, `text`, `logit_scale` (a logarithm), and with
    the sigmoid loss `logit_bias`."""

    vision: VisionTower
    text: TextTower
    init_logit_scale: float
    init_logit_bias: float | None

    def setup(self):
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(self.init_logit_scale), ())
        if self.init_logit_bias is not None:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.init_logit_bias), ())

    def encode_image(
        self, images: Float[Array, "batch size size 3"], deterministic: bool = True
    ) -> Float[Array, "batch dim"]:
        """Normalised pixels -> float32 embeddings of unit norm."""
        return normalize(self.vision(images, deterministic))

    def encode_text(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch dim"]:
        """Token ids -> float32 embeddings of unit norm."""
        return normalize(self.text(ids, deterministic))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What logits are made with: `scale * cosine + bias`; the scale is at most 100 (`clamped`)."""
        return jnp.exp(clamped(self.logit_scale)), self.logit_bias if self.init_logit_bias is not None else jnp.zeros(
            ()
        )

    def __call__(self, images, ids, deterministic: bool = True):
        """Image embeddings, text embeddings, scale and bias."""
        return (
            self.encode_image(images, deterministic),
            self.encode_text(ids, deterministic),
            *self.scale_and_bias(),
        )


@jax.custom_vjp
def clamped(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of the scale, at most log 100.

    Past the limit, a gradient that would lead farther out is dropped and one that leads back is kept, as if the
    parameter were clipped after every update. A plain minimum has no gradient there: one update too far, and the scale
    would stay at its limit for ever.
    """
    return jnp.minimum(log_scale, math.log(MAX_SCALE))


def _clamped_forward(log_scale):
    return clamped(log_scale), log_scale


def _clamped_backward(log_scale, gradient):
    # Descent goes against the gradient: a positive one leads back.
    return (jnp.where((log_scale < math.log(MAX_SCALE)) | (gradient > 0), gradient, 0.0),)


clamped.defvjp(_clamped_forward, _clamped_backward)


def defaults() -> ConfigDict:
    """Options of a model; those of ViT-B/32 as OpenAI trained it."""
    c = ConfigDict()
    c.embed_dim = 512
    c.image = ConfigDict(
        {
            "size": 224,
            "patch": 32,
            "width": 768,
            "depth": 12,
            "heads": 12,
            "mlp_ratio": 4.0,
            "stem": "patch",
            "pool": "cls",
        }
    )
    c.image.pre_norm = True
    c.text = ConfigDict({"context_length": 77, "width": 512, "depth": 12, "heads": 8, "mlp_ratio": 4.0})
    c.activation = "quick_gelu"
    c.eps = 1e-5  # of every layer norm
    c.loss = "softmax"  # or "sigmoid"
    # Equal captions in a batch: "positive" for each other's images, or "negative". The softmax loss has the same value
    # both ways (see docs/design.md); the sigmoid loss and the accuracies differ.
    c.duplicates = "positive"
    c.init_logit_scale = math.log(1 / 0.07)  # a logarithm; SigLIP starts at log 10
    c.init_logit_bias = -10.0  # of the sigmoid loss
    c.scan = True
    c.remat = "none"
    c.dropout = 0.0
    c.dtype = "float32"
    return c


def build(model: Mapping[str, Any] | ConfigDict, vocab_size: int, eos_id: int) -> CLIP:
    """The module that `model` (see `defaults`) describes. ConfigError for a value that is not allowed."""
    model = ConfigDict(model.to_dict() if isinstance(model, ConfigDict) else dict(model))
    _check(model)
    dtype = DTYPES[model.dtype]

    def blocks(tower) -> flax.core.FrozenDict:
        # Frozen: a module can be hashed, and so be a static argument of jit, if its attributes can.
        return flax.core.FrozenDict(
            depth=tower.depth,
            heads=tower.heads,
            mlp_ratio=tower.mlp_ratio,
            activation=model.activation,
            dropout=model.dropout,
            scan=model.scan,
            remat=model.remat,
        )

    shared = {"embed_dim": model.embed_dim, "eps": model.eps, "dtype": dtype}
    image, text = model.image, model.text
    return CLIP(
        vision=VisionTower(
            size=image.size,
            patch=image.patch,
            width=image.width,
            stem=image.stem,
            pool=image.pool,
            pre_norm=image.pre_norm,
            blocks=blocks(image),
            **shared,
        ),
        text=TextTower(
            vocab_size=vocab_size,
            context_length=text.context_length,
            width=text.width,
            eos_id=eos_id,
            blocks=blocks(text),
            **shared,
        ),
        init_logit_scale=model.init_logit_scale,
        init_logit_bias=model.init_logit_bias if model.loss == "sigmoid" else None,
    )


def _check(model: ConfigDict) -> None:
    for key, value, allowed in (
        ("activation", model.activation, ACTIVATIONS),
        ("loss", model.loss, LOSSES),
        ("duplicates", model.duplicates, ("positive", "negative")),
        ("remat", model.remat, REMAT),
        ("dtype", model.dtype, DTYPES),
        ("image.stem", model.image.stem, STEMS),
        ("image.pool", model.image.pool, POOLS),
    ):
        if value not in allowed:
            raise ConfigError(f"config.model.{key} = {value!r}; it must be one of {', '.join(allowed)}")
    for name, tower in (("image", model.image), ("text", model.text)):
        if tower.width % tower.heads:
            raise ConfigError(f"config.model.{name}.heads = {tower.heads} does not divide width = {tower.width}")
    image = model.image
    if image.size % image.patch:
        raise ConfigError(f"config.model.image.patch = {image.patch} does not divide size = {image.size}")
    if image.stem == "conv":
        if image.patch & (image.patch - 1) or image.patch < 2:
            raise ConfigError(f"config.model.image.patch = {image.patch} must be a power of two with the conv stem")
        if image.width % (4 * image.patch):  # the first convolution has 2 * width / patch channels, in 8 groups
            raise ConfigError(
                f"config.model.image.width = {image.width} must be a multiple of 4 * patch = {4 * image.patch} "
                "with the conv stem"
            )
    if model.text.context_length < 3:
        raise ConfigError(f"config.model.text.context_length = {model.text.context_length}; it must be at least 3")
