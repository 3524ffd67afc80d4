"""Placeholders for weight files of VQGAN's tasks, with the shapes of the real ones (see `train_jax.placeholders`)."""

from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

VGG16 = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))


def write_lpips(path: Path) -> str:
    """Writes random weights of LPIPS on VGG16, with the names that `vqgan_jax.perceptual` reads. Returns the path."""
    weights, rng, inputs = {}, np.random.default_rng(0), 3
    for index, (layers, width) in enumerate(VGG16):
        for layer in layers:
            name, std = f"net.slice{index + 1}.{layer}", (2 / (9 * inputs)) ** 0.5
            weights[f"{name}.weight"] = std * rng.standard_normal((width, inputs, 3, 3), np.float32)
            weights[f"{name}.bias"], inputs = np.zeros(width, np.float32), width
        weights[f"lin{index}.model.1.weight"] = rng.random((1, width, 1, 1), np.float32) / width
    save_file({name: x.astype(np.float32) for name, x in weights.items()}, path)
    return str(path)


def random_weights(shapes):
    """Samples random weights that preserve the scale of activations, with NumPy to avoid compilation.

    Args:
      shapes: tree of arrays or shapes, such as `vqgan_jax.pretrained.checkpoint.abstract_variables` of a module.
    """
    rng = np.random.default_rng(0)

    def leaf(path, x):
        name = str(path[-1].key)
        if x.ndim < 2:
            return np.full(x.shape, float(name == "scale"), np.float32)
        fan_in = 1 if name in ("codebook", "embedding") else max(1, int(np.prod(x.shape[:-1])))
        return (rng.standard_normal(x.shape, np.float32) / np.float32(np.sqrt(fan_in))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
