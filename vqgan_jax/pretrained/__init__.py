"""VQGAN checkpoints: one module per format, with a table that maps weight names.

open_checkpoint(path) -> Checkpoint     reads model options; weights are read later
"""

from collections.abc import Callable
from pathlib import Path

import vqgan_jax.known_models  # noqa: F401, registers the short names
from train_jax.errors import LoadError
from train_jax.weights import hub
from vqgan_jax.pretrained import dalle_mini, diffusers, dvae, llamagen, maskgit, run_directory, single_file, taming
from vqgan_jax.pretrained.checkpoint import Checkpoint

__all__ = ["Checkpoint", "LoadError", "open_checkpoint"]

_DIRECTORIES: tuple[Callable, ...] = (
    diffusers.open_directory,
    dalle_mini.open_directory,
    dvae.open_directory,
    taming.open_directory,
)
_FILES: tuple[Callable, ...] = (single_file.open_file, maskgit.open_file, llamagen.open_file, taming.open_file)
# Full names, because "*.safetensors" would download all models of a pipeline.
_HUB_FILES = (
    "config.json", "diffusion_pytorch_model.safetensors", "vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors",
    "movq/config.json", "movq/diffusion_pytorch_model.safetensors",
)  # fmt: skip
_HUB_FALLBACK = (
    "diffusion_pytorch_model*", "vqvae/diffusion_pytorch_model*", "movq/diffusion_pytorch_model*", "flax_model.msgpack",
    "encoder.pkl", "decoder.pkl", "*.ckpt", "*.yaml", "*.yml",
)  # fmt: skip
_FORMATS = (
    "load opens run directories of train-jax (config.json with a task, preprocess.json, checkpoints/), directories of "
    "diffusers' VQModel (config.json, diffusion_pytorch_model.safetensors; of a pipeline, in vqvae/ or movq/), of "
    "dalle-mini's VQGAN (config.json, flax_model.msgpack) and of OpenAI's dVAE (encoder.pkl, decoder.pkl), .safetensors "
    "files of vqgan_jax.save, .ckpt files of taming-transformers, latent diffusion, Kandinsky, Open-MAGVIT2 and IBQ with "
    "their .yaml beside them, LlamaGen's .pt files, MaskGIT's tokenizers, hf:org/name for a repository that holds one "
    "of these, and short names (vqgan-jax models)"
)


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """Opens a checkpoint of any supported format (see `vqgan_jax.load`). Raises LoadError for unknown formats."""
    path = hub.resolve(path, _HUB_FILES, _HUB_FALLBACK)
    if path.is_dir():
        checkpoint = run_directory.open_directory(path, step)
        opened = (opener(path) for opener in _DIRECTORIES)
        checkpoint = checkpoint or next((candidate for candidate in opened if candidate is not None), None)
        contents = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    elif path.is_file():
        opened = (opener(path) for opener in _FILES)
        checkpoint = next((candidate for candidate in opened if candidate is not None), None)
        contents = f"a {path.suffix or 'nameless'} file"
    else:
        raise LoadError(f"{path}: no such file or folder. {_FORMATS}")
    if checkpoint is None:
        raise LoadError(f"{path} is not a VQGAN: it holds {contents}. {_FORMATS}")
    return checkpoint
