"""Shipped configs for benchmarks, with random batches and random weight files."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from benchmarks import guided, load_config
from train_jax import config as config_lib
from train_jax.data.text import Tokenizer
from vqgan_jax import model as vqgan_model
from vqgan_jax import vqgan as vqgan_lib

PRIOR = {"classes": 1000, "width": 1024, "depth": 24, "heads": 16}  # taming's second stage of f16
TINY = {"width": 64, "depth": 2, "heads": 2}
VGG16 = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))


def make_config(family: str, name: str, dtype: str, batch: int, remat: str, folder: Path, tiny: bool) -> ConfigDict:
    """Resolves a shipped config with these options, and writes the files that the config needs to `folder`.

    CLIP uses no micro-batches, and VQGAN's discriminator starts at the first update.
    """
    c = load_config(name)
    c.evals, c.data.batch_size, c.dropout = ConfigDict(), batch, 0.0
    compute = {"dtype": dtype} | ({"remat": remat} if remat else {})
    if family == "clip":
        compute["micro_batch"], c.contrastive = 0, ConfigDict({"tile": 0})
        c.model.update({"image": TINY | {"size": 64}, "text": TINY} if tiny else {})
        c.tokenizer.path = _write_tokenizer(folder / "tokenizer.json", 600)
    elif family == "vqgan":
        c.model.update({"channels": 32, "multipliers": (1, 2), "blocks": 1, "resolution": 32} if tiny else {})
        c.loss.disc_start, c.perceptual.path = 0, _write_lpips(folder / "lpips.safetensors")
    else:
        c.model.update((PRIOR if family == "prior" else {}) | (TINY if tiny else {}))
        c.vqgan.path = _write_vqgan(folder / "vqgan.safetensors", 64 if tiny else 256)
    if family == "dalle":
        c.tokenizer.path = _write_tokenizer(folder / "tokenizer.json", c.tokenizer.vocab_size)
    c.compute = ConfigDict((c.compute.to_dict() if "compute" in c else {}) | compute)
    return config_lib.resolve(c)


def make_batch(family: str, c: ConfigDict, grid: int) -> dict[str, np.ndarray]:
    """Samples a random batch for the family's task; `grid` is the number of codes along a side of an image."""
    rng, m, size = np.random.default_rng(0), c.model, c.data.batch_size
    batch = {}
    if family in ("clip", "vqgan"):
        side = m.image.size if family == "clip" else m.resolution
        batch["image"] = rng.integers(0, 256, (size, side, side, 3), np.uint8)
    else:
        batch["codes"] = rng.integers(0, 16_384, (size, grid, grid), np.int32)
    if family == "prior":
        batch["condition"] = rng.integers(0, m.classes, (size, 1), np.int32)
    if family in ("clip", "dalle"):
        length, tokens = (m.text.context_length, m.text.vocab_size) if family == "clip" else (m.text_length, 16_384)
        batch["text" if family == "clip" else "condition"] = rng.integers(0, tokens, (size, length), np.int32)
        batch["truncated"] = np.zeros(size, bool)
    return batch


def _write_tokenizer(path: Path, vocab_size: int) -> str:
    words = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (20_000, 8)).astype(np.uint8)
    path.write_text(Tokenizer.train((bytes(word).decode() for word in words), vocab_size).to_json())
    return str(path)


def _write_lpips(path: Path) -> str:
    """Writes random weights of LPIPS on VGG16, with the names that `vqgan_jax.perceptual` reads."""
    weights, rng, inputs = {}, np.random.default_rng(0), 3
    for index, (layers, width) in enumerate(VGG16):
        for layer in layers:
            name, std = f"net.slice{index + 1}.{layer}", (2 / (9 * inputs)) ** 0.5
            weights[f"{name}.weight"] = std * rng.standard_normal((width, inputs, 3, 3), np.float32)
            weights[f"{name}.bias"], inputs = np.zeros(width, np.float32), width
        weights[f"lin{index}.model.1.weight"] = rng.random((1, width, 1, 1), np.float32) / width
    save_file({name: x.astype(np.float32) for name, x in weights.items()}, path)
    return str(path)


def _write_vqgan(path: Path, resolution: int) -> str:
    """Writes a narrow f16 VQGAN with 16,384 codes, since a second stage only needs the number of codes."""
    c = load_config("vqgan/f16_16384")
    c.model.update({"channels": 32, "blocks": 1, "attention": (), "resolution": resolution})
    model = config_lib.resolve(c).model
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(vqgan_model.build(model).init, keys, np.zeros((1, 64, 64, 3), np.float32))
    path.write_bytes(vqgan_lib.to_bytes(vqgan_lib.Vqgan.assemble(model, guided.random_weights(shapes), "random")))
    return str(path)
