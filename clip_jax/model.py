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

from clip_jax.resnet import STRIDE, ResNetTower
from clip_jax.text import POOLS as TEXT_POOLS
from clip_jax.text import TextTower
from clip_jax.vision import POOLS, STEMS, VisionTower
from nn_jax.layers import ACTIVATIONS, DTYPES, l2_normalize
from nn_jax.transformer import REMAT
from train_jax.errors import ConfigError

LOSSES = ("softmax", "sigmoid")
TOWERS = ("vit", "resnet")
MAX_SCALE = 100.0  # arXiv 2103.00020, section 2.5


class CLIP(nn.Module):
    """Image and text towers with a shared space. Parameters: `vision`, `text`, `logit_scale` (a logarithm), and with
    the sigmoid loss `logit_bias`. A ResNet's running statistics are the collection `batch_stats`."""

    vision: VisionTower | ResNetTower
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
        return l2_normalize(self.vision(images, deterministic))

    def encode_patches(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch patches dim"]:
        """Normalised pixels -> an embedding of unit norm for each patch, row by row (of a ResNet: each place of its map)."""
        return l2_normalize(self.vision(images, True, True))

    def encode_text(self, ids: Int[Array, "batch length"], deterministic: bool = True) -> Float[Array, "batch dim"]:
        """Token ids -> float32 embeddings of unit norm."""
        return l2_normalize(self.text(ids, deterministic))

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
    c.image = ConfigDict()
    c.image.tower = "vit"  # or "resnet": OpenAI's, of which size, width (of the first stage), heads and layers are said
    c.image.size = 224
    c.image.patch = 32
    c.image.width = 768
    c.image.depth = 12
    c.image.heads = 12
    c.image.mlp_ratio = 4.0
    c.image.stem = "patch"  # or "conv"
    c.image.stem_bias = False
    c.image.pool = "cls"  # or "mean", or "map": attention pooling
    c.image.pre_norm = True
    c.image.proj = True  # False: no linear map at the end, embed_dim is width
    c.image.patch_dropout = 0.0  # share of patches left out in training
    c.image.layers = (3, 4, 6, 3)  # of a resnet
    c.text = ConfigDict({"context_length": 77, "width": 512, "depth": 12, "heads": 8, "mlp_ratio": 4.0})
    c.text.vocab_size = 0  # tokens that are embedded; 0: as many as the tokenizer has
    c.text.causal = True
    c.text.pool = "eos"  # "argmax": OpenAI's rule, the largest id; "last": the row's last place
    c.text.proj_bias = False
    c.activation = "quick_gelu"
    c.eps = 1e-5  # of every layer norm
    c.loss = "softmax"  # or "sigmoid"
    # Equal captions in a batch: "positive" for each other's images, or "negative". The softmax loss has the same value
    # both ways (see docs/design.md); the sigmoid loss and the accuracies differ.
    c.duplicates = "positive"
    # At most so many rows of a device at a time, as many as divide its rows; 0: all. The loss is the same.
    c.tile = 0  # columns of the logits, which are then never all there
    c.micro_batch = 0  # examples that each tower sees; with dropout, other masks
    c.init_logit_scale = math.log(1 / 0.07)  # a logarithm; SigLIP starts at log 10
    c.init_logit_bias = -10.0  # of the sigmoid loss
    c.scan = True
    c.remat = "none"
    c.dropout = 0.0
    c.dtype = "float32"
    return c


# Options that say how to compute, not what: a checkpoint has no opinion on them.
_FREE = (
    "scan",
    "remat",
    "dropout",
    "dtype",
    "duplicates",
    "tile",
    "micro_batch",
    "init_logit_scale",
    "init_logit_bias",
)


def architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's options that decide what its weights are and mean."""
    found = {name: value for name, value in model.items() if name not in _FREE}
    found["image"] = {name: value for name, value in model["image"].items() if name != "patch_dropout"}
    return found


def build(model: Mapping[str, Any] | ConfigDict, vocab_size: int, eos_id: int) -> CLIP:
    """The module that `model` (see `defaults`) describes. ConfigError for a value that is not allowed."""
    model = ConfigDict(model.to_dict() if isinstance(model, ConfigDict) else dict(model))
    _check(model, vocab_size)
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
    if image.tower == "resnet":
        vision = ResNetTower(image.size, image.width, tuple(image.layers), image.heads, model.embed_dim, dtype)
    else:
        names = ("size", "patch", "width", "stem", "stem_bias", "pool", "pre_norm", "proj", "patch_dropout")
        vision = VisionTower(**{name: image[name] for name in names}, blocks=blocks(image), **shared)
    names = ("context_length", "width", "causal", "pool", "proj_bias")
    return CLIP(
        vision=vision,
        text=TextTower(
            vocab_size=text.vocab_size or vocab_size,
            eos_id=eos_id,
            **{name: text[name] for name in names},
            blocks=blocks(text),
            **shared,
        ),
        init_logit_scale=model.init_logit_scale,
        init_logit_bias=model.init_logit_bias if model.loss == "sigmoid" else None,
    )


def _check(model: ConfigDict, vocab_size: int) -> None:
    for key, value, allowed in (
        ("activation", model.activation, ACTIVATIONS),
        ("loss", model.loss, LOSSES),
        ("duplicates", model.duplicates, ("positive", "negative")),
        ("remat", model.remat, REMAT),
        ("dtype", model.dtype, DTYPES),
        ("image.tower", model.image.tower, TOWERS),
        ("image.stem", model.image.stem, STEMS),
        ("image.pool", model.image.pool, POOLS),
        ("text.pool", model.text.pool, TEXT_POOLS),
    ):
        if value not in allowed:
            raise ConfigError(f"config.model.{key} = {value!r}; it must be one of {', '.join(allowed)}")
    for name, tower in (("image", model.image), ("text", model.text)):
        for key in ("width", "heads", "patch", "size"):
            if tower.get(key, 1) < 1:
                raise ConfigError(f"config.model.{name}.{key} = {tower[key]}; it must be at least 1")
    if model.text.width % model.text.heads:
        raise ConfigError(f"config.model.text.heads = {model.text.heads} does not divide width = {model.text.width}")
    (_check_resnet if model.image.tower == "resnet" else _check_vit)(model.image, model.embed_dim)
    for name in ("tile", "micro_batch"):
        if model[name] < 0:
            raise ConfigError(f"config.model.{name} = {model[name]}; it must be 0 (all at once) or more")
    if model.micro_batch and model.image.tower == "resnet":
        raise ConfigError(
            f"config.model.micro_batch = {model.micro_batch} with a resnet: batch norm takes its statistics from the "
            "whole batch, so parts of it would be another model. Set it to 0"
        )
    if model.text.pool == "last" and model.text.causal:
        raise ConfigError(
            "config.model.text.pool = 'last' reads the padding: it needs config.model.text.causal = False"
        )
    if 0 < model.text.vocab_size < vocab_size:
        raise ConfigError(
            f"config.model.text.vocab_size = {model.text.vocab_size} is less than the {vocab_size} tokens of the tokenizer"
        )
    if model.text.context_length < 3:
        raise ConfigError(f"config.model.text.context_length = {model.text.context_length}; it must be at least 3")


def _check_vit(image: ConfigDict, embed_dim: int) -> None:
    if image.width % image.heads:
        raise ConfigError(f"config.model.image.heads = {image.heads} does not divide width = {image.width}")
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
    if not image.proj and image.width != embed_dim:
        raise ConfigError(
            f"config.model.image.proj = False, so embed_dim = {embed_dim} must be image.width = {image.width}"
        )
    if not 0 <= image.patch_dropout < 1:
        raise ConfigError(f"config.model.image.patch_dropout = {image.patch_dropout}; it must be a share in [0, 1)")


def _check_resnet(image: ConfigDict, embed_dim: int) -> None:
    if image.size % STRIDE:
        raise ConfigError(f"config.model.image.size = {image.size} must be a multiple of {STRIDE} with a resnet")
    if len(image.layers) != 4 or min(image.layers) < 1:
        raise ConfigError(f"config.model.image.layers = {image.layers}; a resnet has four stages of at least one block")
    if image.width % 2 or (image.width * STRIDE) % image.heads:
        raise ConfigError(
            f"config.model.image.heads = {image.heads} must divide 32 * image.width = {STRIDE * image.width}"
        )
    if image.patch_dropout:
        raise ConfigError(
            f"config.model.image.patch_dropout = {image.patch_dropout}: a resnet has no patches; set it to 0"
        )
