"""Placeholders for weight files of VQGAN's tasks, with the shapes of the real ones (see `train_jax.placeholders`)."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from train_jax import config as config_lib
from train_jax import config_file
from train_jax.errors import ConfigError
from vqgan_jax import model, vqgan
from vqgan_jax.stage2.checkpoint import VQGAN

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


def write_first_stage(config: ConfigDict, folder: Path) -> vqgan.Vqgan:
    """Writes the first stage of a second stage's config into a run directory, and returns it.

    `config.vqgan.path` names a model, or the shipped config of one, such as "vqgan/f16_16384": then the weights are random,
    and where codes are cached the model is narrow, as only its number of codes and its factor matter. Raises ConfigError
    for any other path.
    """
    path = config.vqgan.path
    if path not in config_file.names():
        if not path or not Path(path).exists():
            names = ", ".join(name for name in config_file.names() if name.startswith("vqgan/"))
            raise ConfigError(
                f"config.vqgan.path = {path!r} is no model. Name one, or a shipped config for a placeholder: {names}"
            )
        first_stage = vqgan.load(path)
    else:
        first_stage = _assemble_random(config_file.load(path), is_narrow=config.codes.cached)
    (folder / VQGAN).write_bytes(vqgan.to_bytes(first_stage))
    return first_stage


def _assemble_random(config: ConfigDict, is_narrow: bool) -> vqgan.Vqgan:
    if is_narrow:
        config.model.update({"channels": 32, "blocks": 1, "attention": ()})
    options = config_lib.resolve(config).model
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    size = options.resolution
    shapes = jax.eval_shape(model.build(options).init, keys, np.zeros((1, size, size, 3), np.float32))
    return vqgan.Vqgan.assemble(options, random_weights(shapes), "placeholder")


def random_weights(shapes):
    """Samples random weights that preserve the scale of activations, with NumPy to avoid compilation."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        name = str(path[-1].key)
        if x.ndim < 2:
            return np.full(x.shape, float(name == "scale"), np.float32)
        fan_in = 1 if name in ("codebook", "embedding") else max(1, int(np.prod(x.shape[:-1])))
        return (rng.standard_normal(x.shape, np.float32) / np.float32(np.sqrt(fan_in))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(shapes))
