"""Weights of MobileCLIP's towers MCi (timm's `fastvit_mci*`), folded to those of `clip_jax.mci`.

Files have the weights of training or, after timm's `reparameterize_model`, those of inference; both are read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clip_jax.mci import DESIGNS, HEAD_DIM, positions_name
from clip_jax.pretrained.openai import linear_entries, norm_entries
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry

TRUNK = "visual.trunk"
# Width of the first stage and blocks of the stages, by scale.
MCI = {
    "mci0": (64, (2, 6, 10, 2)), "mci1": (64, (4, 12, 20, 4)), "mci2": (80, (4, 12, 24, 4)),
    "mci3": (96, (2, 12, 24, 4, 2)), "mci4": (128, (2, 12, 24, 4, 4)),
}  # fmt: skip
_EPS = 1e-5  # of all batch norms


def list_entries(image: Mapping) -> Iterator[Entry]:
    """Lists the parameters of the tower with their names in `fold`."""
    for index in range(3):
        yield from linear_entries(f"vision/stem{index + 1}", f"{TRUNK}.stem.{index}.reparam_conv", "conv")
    stages = len(image["layers"])
    design = DESIGNS[stages]
    for stage, blocks in enumerate(image["layers"]):
        theirs = f"{TRUNK}.stages.{stage}"
        if stage:
            ours, down = f"vision/downsample{stage + 1}", f"{theirs}.downsample.proj"
            for index in range(2):
                yield from linear_entries(f"{ours}/conv{index + 1}", f"{down}.{index}.reparam_conv", "conv")
            if stage >= stages - design.exciting:
                yield from _excitation_entries(ours, f"{down}.0.se")
        attends = stage >= stages - design.attending
        if attends:
            yield from linear_entries(f"vision/{positions_name(stage, stages)}", f"{theirs}.pos_emb.reparam_conv", "conv")
        for index in range(blocks):
            ours, block = f"vision/stage{stage + 1}_{index}", f"{theirs}.blocks.{index}"
            if attends:
                heads = image["width"] * 2**stage // HEAD_DIM
                if design.has_norm:
                    yield from norm_entries(f"{ours}/norm", f"{block}.norm")
                yield Entry(f"{ours}/attention/qkv/kernel", (f"{block}.token_mixer.qkv.weight",), "qkv", heads)
                yield Entry(f"{ours}/attention/qkv/bias", (f"{block}.token_mixer.qkv.bias",), "qkv_bias", heads)
                yield from linear_entries(f"{ours}/attention/out", f"{block}.token_mixer.proj", "merge_heads", heads)
            else:
                yield from linear_entries(f"{ours}/mixer", f"{block}.token_mixer.reparam_conv", "conv")
            yield from linear_entries(f"{ours}/conv", f"{block}.mlp.conv.conv", "conv")
            yield from linear_entries(f"{ours}/mlp_in", f"{block}.mlp.fc1", "conv1x1_to_linear")
            yield from linear_entries(f"{ours}/mlp_out", f"{block}.mlp.fc2", "conv1x1_to_linear")
    yield from linear_entries("vision/conv_out", f"{TRUNK}.final_conv.reparam_conv", "conv")
    yield from _excitation_entries("vision", f"{TRUNK}.final_conv.se")
    yield from linear_entries("vision/proj", f"{TRUNK}.head.fc")


def _excitation_entries(ours: str, theirs: str) -> Iterator[Entry]:
    yield from linear_entries(f"{ours}/squeeze", f"{theirs}.fc1", "conv1x1_to_linear")
    yield from linear_entries(f"{ours}/excite", f"{theirs}.fc2", "conv1x1_to_linear")


def fold(tensors: Mapping[str, Any], image: Mapping, where: str) -> dict[str, Any]:
    """Folds batch norms, branches, shortcuts and layer scales of training into convolutions and products, in float64.

    Args:
      tensors: name -> array-like.
      image: options of `ImageOptions`.
      where: name of the file for messages.

    Raises LoadError for missing tensors.
    """
    try:
        return _Folding(tensors).apply(image["layers"])
    except KeyError as error:
        raise LoadError(f"{where} lacks tensor(s), first of them {error}") from error


class _Folding:
    """Tensors of a tower, of which those that are folded are replaced."""

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors = dict(tensors)

    def apply(self, layers: tuple[int, ...]) -> dict[str, Any]:
        design = DESIGNS[len(layers)]
        for index, has_shortcut in enumerate((False, False, True)):
            has_scale = index < 2 and not design.has_norm
            self._convolution(f"{TRUNK}.stem.{index}", has_scale, has_shortcut)
        for stage, blocks in enumerate(layers):
            theirs = f"{TRUNK}.stages.{stage}"
            if stage:
                self._large_convolution(f"{theirs}.downsample.proj.0")
                self._convolution(f"{theirs}.downsample.proj.1", has_scale=False, has_shortcut=True)
            attends = stage >= len(layers) - design.attending
            if attends:
                self._positions(f"{theirs}.pos_emb")
            for index in range(blocks):
                self._block(f"{theirs}.blocks.{index}", attends, design.has_norm)
        self._convolution(f"{TRUNK}.final_conv", has_scale=True, has_shortcut=False)
        return self._tensors

    def _take(self, name: str) -> np.ndarray:
        return np.asarray(self._tensors.pop(name), np.float64)

    def _put(self, name: str, kernel: np.ndarray, bias: np.ndarray) -> None:
        self._tensors |= {f"{name}.weight": kernel.astype(np.float32), f"{name}.bias": bias.astype(np.float32)}

    def _is_folded(self, name: str) -> bool:
        return f"{name}.reparam_conv.weight" in self._tensors

    def _norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scale and shift of each channel of a batch norm."""
        self._tensors.pop(f"{name}.num_batches_tracked", None)
        scale = self._take(f"{name}.weight") / np.sqrt(self._take(f"{name}.running_var") + _EPS)
        return scale, self._take(f"{name}.bias") - self._take(f"{name}.running_mean") * scale

    def _normed(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel and bias of a convolution and its batch norm."""
        scale, shift = self._norm(f"{name}.bn")
        return self._take(f"{name}.conv.weight") * scale[:, None, None, None], shift

    def _branches(self, name: str, has_scale: bool, has_shortcut: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel and bias of the sum of a convolution, one of 1 x 1 and a shortcut, each with its batch norm."""
        kernel, bias = self._normed(f"{name}.conv_kxk.0")
        if has_scale:
            small, shift = self._normed(f"{name}.conv_scale")
            kernel, bias = kernel + _pad(small, kernel.shape[-1]), bias + shift
        if has_shortcut:
            scale, shift = self._norm(f"{name}.identity")
            kernel, bias = kernel + _identity(kernel.shape) * scale[:, None, None, None], bias + shift
        return kernel, bias

    def _convolution(self, name: str, has_scale: bool, has_shortcut: bool) -> None:
        if not self._is_folded(name):
            self._put(f"{name}.reparam_conv", *self._branches(name, has_scale, has_shortcut))

    def _large_convolution(self, name: str) -> None:
        if not self._is_folded(name):
            (kernel, bias), (small, shift) = self._normed(f"{name}.large_conv"), self._normed(f"{name}.small_conv")
            self._put(f"{name}.reparam_conv", kernel + _pad(small, kernel.shape[-1]), bias + shift)

    def _positions(self, name: str) -> None:
        if not self._is_folded(name):
            kernel = self._take(f"{name}.pos_enc.weight")
            self._put(f"{name}.reparam_conv", kernel + _identity(kernel.shape), self._take(f"{name}.pos_enc.bias"))

    def _block(self, name: str, attends: bool, has_layer_norm: bool) -> None:
        mixer = f"{name}.token_mixer"
        if attends:
            kernel = self._take(f"{mixer}.qkv.weight")
            identity = np.ones(kernel.shape[1]), np.zeros(kernel.shape[1])
            scale, shift = identity if has_layer_norm else self._norm(f"{name}.norm")
            self._put(f"{mixer}.qkv", kernel * scale[None], kernel @ shift)
            self._scale(f"{mixer}.proj", f"{name}.layer_scale_1")
        elif not self._is_folded(mixer):
            kernel, bias = self._branches(f"{mixer}.mixer", has_scale=True, has_shortcut=True)
            scale, shift = self._norm(f"{mixer}.norm.identity")
            gamma, identity = self._take(f"{mixer}.layer_scale.gamma").reshape(-1), _identity(kernel.shape)
            difference = kernel - identity * scale[:, None, None, None]
            self._put(f"{mixer}.reparam_conv", identity + gamma[:, None, None, None] * difference, gamma * (bias - shift))
        self._put(f"{name}.mlp.conv.conv", *self._normed(f"{name}.mlp.conv"))
        self._scale(f"{name}.mlp.fc2", f"{name}.layer_scale_2" if attends else f"{name}.layer_scale")

    def _scale(self, name: str, scale: str) -> None:
        """Folds a layer scale into the product before it."""
        gamma, kernel = self._take(f"{scale}.gamma").reshape(-1), self._take(f"{name}.weight")
        self._put(name, kernel * gamma.reshape(-1, *[1] * (kernel.ndim - 1)), self._take(f"{name}.bias") * gamma)


def _pad(kernel: np.ndarray, window: int) -> np.ndarray:
    """Pads a kernel with zeros to a larger window."""
    margin = (window - kernel.shape[-1]) // 2
    return np.pad(kernel, ((0, 0), (0, 0), (margin, margin), (margin, margin)))


def _identity(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the kernel [out, in, window, window] of the identity; with one input, of each channel by itself."""
    kernel, channels = np.zeros(shape), np.arange(shape[0])
    kernel[channels, channels % shape[1], shape[2] // 2, shape[3] // 2] = 1
    return kernel
