"""VQGANs in files: one module a format, each with a table from its names to ours.

open_checkpoint(path) -> Checkpoint     what the files tell, before any weight is read
"""

from collections.abc import Callable
from pathlib import Path

from train_jax import paths
from train_jax.errors import LoadError
from vqgan_jax.pretrained import dalle_mini, diffusers, dvae, run_directory, single_file, taming
from vqgan_jax.pretrained.checkpoint import Checkpoint

__all__ = ["Checkpoint", "LoadError", "open_checkpoint"]

_DIRECTORIES: tuple[Callable, ...] = (
    diffusers.open_directory,
    dalle_mini.open_directory,
    dvae.open_directory,
    taming.open_directory,
)
_KINDS = (
    "load opens run directories of train-jax (config.json with a task, preprocess.json, checkpoints/), directories of "
    "diffusers' VQModel (config.json, diffusion_pytorch_model.safetensors), of dalle-mini's VQGAN (config.json, "
    "flax_model.msgpack) and of OpenAI's dVAE (encoder.pkl, decoder.pkl), .safetensors files of vqgan_jax.save, and "
    "taming-transformers' .ckpt files with their .yaml beside them"
)


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """What the files at `path` tell of a model (see `vqgan_jax.load`). Raises LoadError if that is none that is known."""
    path = paths.weights(path)
    if path.is_dir():
        found = run_directory.open_directory(path, step)
        found = found or next((found for opener in _DIRECTORIES if (found := opener(path)) is not None), None)
        held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    elif path.is_file():
        found, held = single_file.open_file(path) or taming.open_file(path), f"a {path.suffix or 'nameless'} file"
    else:
        raise LoadError(f"{path}: no such file or folder. {_KINDS}")
    if found is None:
        raise LoadError(f"{path} is no VQGAN: it holds {held}. {_KINDS}")
    return found
