"""Checkpoint formats of DALL-E: one module per format.

open_checkpoint(path) -> Stage2Checkpoint     reads the configuration; the transformer's weights are read later
"""

from pathlib import Path

import dalle_jax.known_models  # noqa: F401, registers the short names
from dalle_jax.pretrained import dalle_mini, llamagen, min_dalle, rudalle, run_directory
from train_jax.errors import LoadError
from train_jax.weights import hub
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint

__all__ = ["LoadError", "open_checkpoint"]

_HUB_FILES = (
    "config.yaml", "config.json", "stage1_last.ckpt", "stage2_last.ckpt", "tokenizer/*", "flax_model.msgpack",
    "tokenizer.json", "enwiki-words-frequency.txt", "pytorch_model*.bin", "bpe.model", "vqgan/*",
)  # fmt: skip
_FORMATS = (
    "load opens run directories of train-jax (config.json with the task dalle_jax.task, tokenizer.json, vqgan.safetensors, "
    "checkpoints/), directories of minDALL-E (config.yaml, stage1_last.ckpt, stage2_last.ckpt, tokenizer/), of dalle-mini "
    "(config.json, flax_model.msgpack, tokenizer.json, vqgan/), of ruDALL-E (config.json, .bin, bpe.model, vqgan/) and of "
    "a text-conditional LlamaGen (config.json, .pt, vqgan/, t5/), "
    "hf:org/name for a repository with these, and short names (dalle-jax models)"
)


def open_checkpoint(path: str | Path, step: int | None = None, vqgan: str | Path | None = None) -> Stage2Checkpoint:
    """Opens the checkpoint at `path` (see `dalle_jax.load`). Raises LoadError if the format is unknown."""
    path = hub.resolve(path, _HUB_FILES)
    if not path.is_dir():
        contents = "it is a file" if path.is_file() else "there is no such folder"
        raise LoadError(f"{path} is not a DALL-E: {contents}. {_FORMATS}")
    checkpoint = run_directory.open_directory(path, step) or min_dalle.open_directory(path)
    if checkpoint is not None and vqgan is not None:
        raise LoadError(f"{path} contains the VQGAN of its codes: leave out the VQGAN {str(vqgan)!r}")
    for module in (dalle_mini, rudalle, llamagen):
        checkpoint = checkpoint or module.open_directory(path, vqgan)
    if checkpoint is None:
        contents = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise LoadError(f"{path} is not a DALL-E: it holds {contents}. {_FORMATS}")
    return checkpoint
