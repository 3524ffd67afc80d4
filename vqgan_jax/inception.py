"""Inception-v3 of the Fréchet Inception distance (FID), which computes 2,048 pooled features of an image.

The weights are those of TensorFlow's 2015-12-05 graph, as converted to PyTorch in `pt_inception-2015-12-05-*.pth`, with
torchvision's names and the pooling of TensorFlow's graph. Features of other Inception weights are not comparable.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train_jax import paths
from train_jax.errors import LoadError
from train_jax.weights.tensors import open_tensors

SIDE = 299
_EPS = 0.001  # epsilon of batch norms

# Convolutions of a block: name -> (input channels, output channels, (height, width) of the kernel).
_Convs = dict[str, tuple[int, int, tuple[int, int]]]


def _block_a(inputs: int, pooled: int) -> _Convs:
    return {
        "branch1x1": (inputs, 64, (1, 1)),
        "branch5x5_1": (inputs, 48, (1, 1)),
        "branch5x5_2": (48, 64, (5, 5)),
        "branch3x3dbl_1": (inputs, 64, (1, 1)),
        "branch3x3dbl_2": (64, 96, (3, 3)),
        "branch3x3dbl_3": (96, 96, (3, 3)),
        "branch_pool": (inputs, pooled, (1, 1)),
    }


def _block_c(middle: int) -> _Convs:
    return {
        "branch1x1": (768, 192, (1, 1)),
        "branch7x7_1": (768, middle, (1, 1)),
        "branch7x7_2": (middle, middle, (1, 7)),
        "branch7x7_3": (middle, 192, (7, 1)),
        "branch7x7dbl_1": (768, middle, (1, 1)),
        "branch7x7dbl_2": (middle, middle, (7, 1)),
        "branch7x7dbl_3": (middle, middle, (1, 7)),
        "branch7x7dbl_4": (middle, middle, (7, 1)),
        "branch7x7dbl_5": (middle, 192, (1, 7)),
        "branch_pool": (768, 192, (1, 1)),
    }


def _block_e(inputs: int) -> _Convs:
    return {
        "branch1x1": (inputs, 320, (1, 1)),
        "branch3x3_1": (inputs, 384, (1, 1)),
        "branch3x3_2a": (384, 384, (1, 3)),
        "branch3x3_2b": (384, 384, (3, 1)),
        "branch3x3dbl_1": (inputs, 448, (1, 1)),
        "branch3x3dbl_2": (448, 384, (3, 3)),
        "branch3x3dbl_3a": (384, 384, (1, 3)),
        "branch3x3dbl_3b": (384, 384, (3, 1)),
        "branch_pool": (inputs, 192, (1, 1)),
    }


_BLOCKS: dict[str, _Convs] = {
    "": {
        "Conv2d_1a_3x3": (3, 32, (3, 3)),
        "Conv2d_2a_3x3": (32, 32, (3, 3)),
        "Conv2d_2b_3x3": (32, 64, (3, 3)),
        "Conv2d_3b_1x1": (64, 80, (1, 1)),
        "Conv2d_4a_3x3": (80, 192, (3, 3)),
    },
    "Mixed_5b.": _block_a(192, 32),
    "Mixed_5c.": _block_a(256, 64),
    "Mixed_5d.": _block_a(288, 64),
    "Mixed_6a.": {
        "branch3x3": (288, 384, (3, 3)),
        "branch3x3dbl_1": (288, 64, (1, 1)),
        "branch3x3dbl_2": (64, 96, (3, 3)),
        "branch3x3dbl_3": (96, 96, (3, 3)),
    },
    "Mixed_6b.": _block_c(128),
    "Mixed_6c.": _block_c(160),
    "Mixed_6d.": _block_c(160),
    "Mixed_6e.": _block_c(192),
    "Mixed_7a.": {
        "branch3x3_1": (768, 192, (1, 1)),
        "branch3x3_2": (192, 320, (3, 3)),
        "branch7x7x3_1": (768, 192, (1, 1)),
        "branch7x7x3_2": (192, 192, (1, 7)),
        "branch7x7x3_3": (192, 192, (7, 1)),
        "branch7x7x3_4": (192, 192, (3, 3)),
    },
    "Mixed_7b.": _block_e(1280),
    "Mixed_7c.": _block_e(2048),
}


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the expected shapes of the weights, by tensor name."""
    expected = {}
    for block, convs in _BLOCKS.items():
        for name, (inputs, outputs, window) in convs.items():
            expected[f"{block}{name}.conv.weight"] = (outputs, inputs, *window)
            for part in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{block}{name}.bn.{part}"] = (outputs,)
    return expected


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the weights from a file (.pth, .safetensors, .npz). Raises LoadError for missing and mismatched tensors."""
    tensors = open_tensors(paths.path(path))
    wrong = [
        f"{name} {list(tensors[name].shape) if name in tensors else 'missing'}, expected {list(shape)}"
        for name, shape in expected_shapes().items()
        if name not in tensors or tuple(tensors[name].shape) != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise LoadError(f"{path} holds no Inception-v3 of FID: {'; '.join(wrong[:6])}{more}")
    return {name: np.asarray(tensors[name], np.float32) for name in expected_shapes()}


def extract_features(weights: Mapping[str, Array], images: Float[Array, "n h w 3"]) -> Float[Array, "n 2048"]:
    """Computes pooled features of images in [0, 1]. Images are resized to 299 x 299 pixels (bilinear, no antialiasing)."""

    def conv(x, name: str, stride: int = 1, same: bool = True):
        kernel = weights[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        pad = [((k - 1) // 2,) * 2 if same else (0, 0) for k in kernel.shape[:2]]
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        gain, bias, mean, var = (
            weights[f"{name}.bn.{part}"][None, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return jax.nn.relu((x - mean) * jax.lax.rsqrt(var + _EPS) * gain + bias)

    def apply_convs(x, block: str, *names: str):
        for name in names:
            x = conv(x, block + name)
        return x

    def concatenate(*branches):
        return jnp.concatenate(branches, axis=-1)

    def block_a(x, b: str):
        return concatenate(
            apply_convs(x, b, "branch1x1"),
            apply_convs(x, b, "branch5x5_1", "branch5x5_2"),
            apply_convs(x, b, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            apply_convs(_mean_pool(x), b, "branch_pool"),
        )

    def block_c(x, b: str):
        return concatenate(
            apply_convs(x, b, "branch1x1"),
            apply_convs(x, b, *(f"branch7x7_{i}" for i in (1, 2, 3))),
            apply_convs(x, b, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
            apply_convs(_mean_pool(x), b, "branch_pool"),
        )

    def block_e(x, b: str, pooled):
        branch3, branch3_double = apply_convs(x, b, "branch3x3_1"), apply_convs(x, b, "branch3x3dbl_1", "branch3x3dbl_2")
        return concatenate(
            apply_convs(x, b, "branch1x1"),
            *(apply_convs(branch3, b, f"branch3x3_2{side}") for side in "ab"),
            *(apply_convs(branch3_double, b, f"branch3x3dbl_3{side}") for side in "ab"),
            apply_convs(pooled, b, "branch_pool"),
        )

    x = 2 * _resize(images) - 1
    x = conv(x, "Conv2d_1a_3x3", 2, same=False)
    x = conv(x, "Conv2d_2a_3x3", same=False)
    x = conv(x, "Conv2d_2b_3x3")
    x = conv(_max_pool(x, 2), "Conv2d_3b_1x1")
    x = _max_pool(conv(x, "Conv2d_4a_3x3", same=False), 2)
    for name in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
        x = block_a(x, name)
    b = "Mixed_6a."
    branch3_double = conv(apply_convs(x, b, "branch3x3dbl_1", "branch3x3dbl_2"), b + "branch3x3dbl_3", 2, same=False)
    x = concatenate(conv(x, b + "branch3x3", 2, same=False), branch3_double, _max_pool(x, 2))
    for name in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
        x = block_c(x, name)
    b = "Mixed_7a."
    branch3 = conv(apply_convs(x, b, "branch3x3_1"), b + "branch3x3_2", 2, same=False)
    branch7 = conv(apply_convs(x, b, *(f"branch7x7x3_{i}" for i in (1, 2, 3))), b + "branch7x7x3_4", 2, same=False)
    x = concatenate(branch3, branch7, _max_pool(x, 2))
    x = block_e(x, "Mixed_7b.", _mean_pool(x))
    # TensorFlow's graph has a max pooling here, torchvision a mean pooling.
    x = block_e(x, "Mixed_7c.", _max_pool(x, 1, pad=1))
    return x.mean(axis=(1, 2))


def _resize(images):
    """Resizes images bilinearly without antialiasing, like PyTorch's interpolate with align_corners=False."""
    n, _, _, c = images.shape
    return jax.image.resize(images, (n, SIDE, SIDE, c), "bilinear", antialias=False)


def _max_pool(x, stride: int, pad: int = 0):
    pads = [(0, 0), (pad, pad), (pad, pad), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pads)


def _mean_pool(x):
    """Computes 3 x 3 mean pooling of stride 1, excluding the padding from means."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]

    def total(y):
        return jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads)

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
