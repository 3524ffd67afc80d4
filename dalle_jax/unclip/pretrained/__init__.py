"""Checkpoint formats of unCLIP: one module per format.

open_checkpoint(path) -> UnclipCheckpoint     reads the configurations; the weights of each part are read later
replace_prior(checkpoint, path)               the same with another prior
save_karlo(checkpoint, directory)             writes a directory that diffusers' UnCLIPPipeline opens
"""

from pathlib import Path

import dalle_jax.known_models  # noqa: F401, registers the short names
from dalle_jax.unclip.pretrained import karlo, karlo_files
from dalle_jax.unclip.pretrained.checkpoint import UnclipCheckpoint
from dalle_jax.unclip.pretrained.karlo import save_karlo
from train_jax.errors import LoadError
from train_jax.weights import hub

__all__ = ["LoadError", "UnclipCheckpoint", "open_checkpoint", "replace_prior", "save_karlo"]

_HUB_FILES = ("*.json", "*/*.json", "tokenizer/merges.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")
_HUB_FALLBACK = ("*/pytorch_model.bin", "*/diffusion_pytorch_model.bin")
_PRIOR_HUB_FILES = tuple(f"{folder}diffusion_pytorch_model.safetensors" for folder in ("", "prior/"))
_PRIOR_HUB_FALLBACK = tuple(name.replace("safetensors", "bin") for name in _PRIOR_HUB_FILES)
_FORMATS = (
    f"supported are directories of diffusers' UnCLIPPipeline ({karlo.INDEX}, prior/, decoder/, …), such as "
    f"hf:kakaobrain/karlo-v1-alpha or unclip:karlo, and directories of karlo's own files "
    f"({', '.join(karlo_files.FILES.values())})"
)


def resolve(path: str | Path) -> Path:
    """Returns the path of an unCLIP, after downloading it if it is a name of the hub (`train_jax.weights.hub`)."""
    return hub.resolve(path, _HUB_FILES, _HUB_FALLBACK)


def open_checkpoint(path: str | Path) -> UnclipCheckpoint:
    """Opens the checkpoint at `path`. Raises LoadError if it is damaged, or of another model or an unknown format."""
    path = resolve(path)
    if not path.is_dir():
        contents = "it is a file" if path.is_file() else "there is no such folder"
        raise LoadError(f"{path} is not an unCLIP: {contents}. {_FORMATS}")
    checkpoint = karlo.open_directory(path) or karlo_files.open_directory(path)
    if checkpoint is None:
        contents = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise LoadError(f"{path} is not an unCLIP: it holds {contents}. {_FORMATS}")
    return checkpoint


def replace_prior(checkpoint: UnclipCheckpoint, path: str | Path) -> UnclipCheckpoint:
    """Replaces the prior by one for the same CLIP, such as hf:kandinsky-community/kandinsky-2-1-prior.

    See `dalle_jax.unclip.pretrained.karlo.replace_prior`. `hf:ECLIPSE-Community/ECLIPSE_Karlo_Prior` is a prior of one step.
    """
    return karlo.replace_prior(checkpoint, hub.resolve(path, ("*.json", *_PRIOR_HUB_FILES), _PRIOR_HUB_FALLBACK))
