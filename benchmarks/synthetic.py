"""Shipped configs for benchmarks, with random batches and random weight files."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from benchmarks import load_config
from train_jax import config as config_lib
from train_jax import task as task_lib

PRIOR = {"classes": 1000, "width": 1024, "depth": 24, "heads": 16}  # taming's second stage of f16
FIRST_STAGE = "vqgan/f16_16384"
TINY = {"width": 64, "depth": 2, "heads": 2}  # toy blocks, to test benchmarks
TINY_VQGAN = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "resolution": 32}


def make_config(family: str, name: str, dtype: str, batch: int, remat: str, folder: Path, tiny: bool) -> ConfigDict:
    """Resolves a shipped config with these options, and writes placeholders of the files that it needs to `folder`.

    CLIP uses no micro-batches, and VQGAN's discriminator starts at the first update.
    """
    c = load_config(name)
    c.evals, c.data.batch_size, c.dropout = ConfigDict(), batch, 0.0
    compute = {"dtype": dtype} | ({"remat": remat} if remat else {})
    if family == "clip":
        compute["micro_batch"], c.contrastive = 0, ConfigDict({"tile": 0})
        c.model.update({"image": TINY | {"size": 64}, "text": TINY} if tiny else {})
        c.tokenizer.path = ""
    elif family == "vqgan":
        c.model.update(TINY_VQGAN if tiny else {})
        c.update({"perceptual": {"type": "none"}, "discriminator": {"channels": 16, "layers": 1}} if tiny else {})
        c.loss.disc_start = 0
    else:
        c.model.update((PRIOR if family == "prior" else {}) | (TINY if tiny else {}))
        c.vqgan.path, c.vqgan.size = FIRST_STAGE, 64 if tiny else 256
    c.compute = ConfigDict((c.compute.to_dict() if "compute" in c else {}) | compute)
    c = config_lib.resolve(c)
    return task_lib.module(c).write_placeholders(c, folder)[0]


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
        text = (m.text.context_length, m.text.vocab_size) if family == "clip" else (m.text_length, c.tokenizer.vocab_size)
        length, tokens = text
        batch["text" if family == "clip" else "condition"] = rng.integers(0, tokens, (size, length), np.int32)
        batch["truncated"] = np.zeros(size, bool)
    return batch
