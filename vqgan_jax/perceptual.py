"""Perceptual distances in the feature space of a frozen network: LPIPS on VGG16, or a CLIP.

    distance = open_distance(options)                                  reads the weights; None for type "none"
    value = distance.function(distance.weights, images, references)    pixels in [-1, 1] -> scalar

The network runs in the dtype given as the fourth argument; features are compared in float32. Images and references are two
passes, not one over both: training differentiates only with respect to the images, so the references' pass has no backward
pass and keeps no activations, which a joint pass would have for both.

The weights are part of the training state (`extra["perceptual"]`), so that a run can resume without the weight file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from clip_jax import pretrained
from nn_jax.convolution import convolve
from nn_jax.layers import DTYPES
from nn_jax.transformer import Block
from train_jax import paths
from train_jax.errors import ConfigError, LoadError
from train_jax.options import Options, option
from train_jax.weights.tensors import open_tensors

TYPES = ("none", "lpips", "clip")
# VGG16's convolutions by their index in torchvision's `features`; a max pooling precedes each slice except the first.
_SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
MIN_SIDE = 16  # pixels of the smallest picture that VGG16 reduces to its last maps
_SHIFT = np.asarray([-0.030, -0.088, -0.188], np.float32)  # scaling layer of LPIPS for pixels in [-1, 1]
_SCALE = np.asarray([0.458, 0.448, 0.450], np.float32)


@dataclasses.dataclass(frozen=True)
class Distance:
    """A perceptual distance: weights as NumPy arrays, and `(weights, images, references, dtype="float32") -> scalar`.

    `dtype`: that of the network's activations and products, a key of `nn_jax.layers.DTYPES`; the distance is float32.
    """

    weights: Any
    function: Callable


@dataclasses.dataclass(frozen=True)
class PerceptualOptions(Options):
    """Options of the perceptual loss."""

    type: str = option("none", "perceptual distance; lpips: arXiv 1801.03924, clip: CLIP features", choices=TYPES)
    path: str = option("", "file with weights of LPIPS, or a CLIP (anything that clip_jax.load opens)")
    weight: float = option(1.0, "weight of the perceptual loss", least=0)


def open_distance(options: ConfigDict) -> Distance | None:
    """Opens the perceptual distance of `config.perceptual`; returns None for type "none".

    Raises ConfigError for invalid options, for a missing path, and for a file without the weights.
    """
    options = PerceptualOptions.parse(options, "perceptual")
    if options.type == "none":
        return None
    if not options.path:
        remedy = "weights of LPIPS (a .safetensors, .pt or .npz file, or a taming checkpoint)"
        remedy = remedy if options.type == "lpips" else "a CLIP, anything that clip_jax.load opens"
        raise ConfigError(f"config.perceptual.type = {options.type!r} needs config.perceptual.path: {remedy}")
    try:
        return load_lpips(options.path) if options.type == "lpips" else _load_clip_distance(options.path)
    except (LoadError, OSError) as error:
        raise ConfigError(f"config.perceptual.path: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# LPIPS


def load_lpips(path: str) -> Distance:
    """Loads LPIPS from a taming checkpoint (`loss.perceptual_loss.*`) or a file with LPIPS's original names.

    Raises LoadError for other files.
    """
    tensors = open_tensors(paths.path(path))
    for prefix in ("state_dict.loss.perceptual_loss.", "loss.perceptual_loss.", "perceptual_loss.", ""):
        if f"{prefix}lin0.model.1.weight" in tensors:
            break
    else:
        raise LoadError(f"{path} holds no LPIPS: no lin0.model.1.weight among its {len(tensors)} tensors")
    weights = {"vgg": {}, "lin": []}
    missing = []
    for slice_index, layers in enumerate(_SLICES):
        for layer in layers:
            names = {kind: f"{prefix}net.slice{slice_index + 1}.{layer}.{kind}" for kind in ("weight", "bias")}
            missing += [name for name in names.values() if name not in tensors]
            if not missing:
                kernel = np.asarray(tensors[names["weight"]], np.float32).transpose(2, 3, 1, 0)
                weights["vgg"][str(layer)] = {"kernel": kernel, "bias": np.asarray(tensors[names["bias"]], np.float32)}
        name = f"{prefix}lin{slice_index}.model.1.weight"
        missing += [name] if name not in tensors else []
        if not missing:
            weights["lin"].append(np.asarray(tensors[name], np.float32).reshape(-1))
    if missing:
        raise LoadError(f"{path} lacks tensors of LPIPS: {', '.join(missing[:6])}")
    weights["lin"] = {str(i): value for i, value in enumerate(weights["lin"])}
    return Distance(weights, lpips)


def lpips(
    weights, images: Float[Array, "b h w 3"], references: Float[Array, "b h w 3"], dtype: str = "float32"
) -> Float[Array, ""]:
    """Computes the mean LPIPS of a batch (arXiv 1801.03924, equation 1). Pixels are in [-1, 1], sides at least 16."""
    total = 0.0
    features = zip(*(vgg_features(weights["vgg"], x, DTYPES[dtype]) for x in (images, references)), strict=True)
    for i, (a, b) in enumerate(features):
        difference = (_normalize(a) - _normalize(b)) ** 2
        total += jnp.mean(difference @ weights["lin"][str(i)])
    return total


def _normalize(x):
    """Returns unit vectors, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    # Zero vectors remain zero and have finite gradients. Inside the root, 1e-10 would change small vectors.
    return x / (jnp.sqrt(jnp.where(squares > 0, squares, 1.0)) + 1e-10)


def vgg_features(weights, x: Float[Array, "b h w 3"], dtype: DTypeLike) -> list[Float[Array, "b _ _ c"]]:
    """Computes the maps of VGG16 before each max pooling, and the last ones. Pixels are in [-1, 1], sides at least 16.

    Args:
      weights: `kernel` and `bias` of each convolution, the `vgg` of LPIPS's weights.
      dtype: that of the maps.
    """
    x = ((x - _SHIFT[None, None, None]) / _SCALE[None, None, None]).astype(dtype)
    features = []
    for slice_index, layers in enumerate(_SLICES):
        if slice_index:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for layer in layers:
            params = weights[str(layer)]
            x = convolve(x, params["kernel"], (1, 1), "SAME")
            x = jax.nn.relu(x + params["bias"].astype(dtype)[None, None, None])
        features.append(x)
    return features


# ---------------------------------------------------------------------------------------------------------------------
# CLIP


def _load_clip_distance(path: str) -> Distance:
    """Loads a CLIP distance: mean squared difference of normalised tokens after one and two thirds of a ViT's blocks."""
    checkpoint = pretrained.open_checkpoint(path)

    @functools.cache
    def in_dtype(dtype: str):
        compute = dataclasses.replace(checkpoint.compute, dtype=dtype)
        return dataclasses.replace(checkpoint, compute=compute).module(scan=False)

    module = in_dtype("float32")
    tower = module.options.image.tower
    if tower != "vit":
        raise LoadError(f"{path}: a CLIP with a {tower} has no transformer blocks; name a CLIP with a ViT")
    variables, _ = checkpoint.variables(module)
    depth, size = module.options.image.depth, module.options.image.size
    block_counts = sorted({max(1, round(depth / 3)), max(1, round(2 * depth / 3))})
    preprocess = checkpoint.preprocess
    mean, std = (np.asarray(v, np.float32)[None, None, None] for v in (preprocess.mean, preprocess.std))

    def features(weights, x, dtype: str):
        x = ((x + 1) / 2 - mean) / std
        if x.shape[1:3] != (size, size):
            x = jax.image.resize(x, (x.shape[0], size, size, 3), "bicubic")
        _, state = in_dtype(dtype).apply(
            weights,
            x,
            method="encode_image",
            capture_intermediates=lambda part, _: isinstance(part, Block),
            mutable=["intermediates"],
        )
        blocks = state["intermediates"]["vision"]["transformer"]
        return [_normalize(blocks[f"block_{n - 1}"]["__call__"][0]) for n in block_counts]

    def distance(weights, images, references, dtype: str = "float32"):
        pairs = zip(*(features(weights, x, dtype) for x in (images, references)), strict=True)
        return sum(jnp.mean(jnp.sum((a - b) ** 2, axis=-1)) for a, b in pairs) / len(block_counts)

    params = {name: value for name, value in variables["params"].items() if name != "text"}
    return Distance({"params": params}, distance)
