"""Checkpoint formats of CLIP: one module per format, each with a table of parameter names.

open_checkpoint(path) -> Checkpoint     reads the configuration; the weights are read later
"""

import dataclasses
import logging
from pathlib import Path

import clip_jax.known_models  # noqa: F401, registers the short names
from clip_jax.pretrained import (
    big_vision,
    halves,
    hugging_face,
    image_processor,
    open_clip,
    openai,
    openai_file,
    run_directory,
    single_file,
    timm,
)
from clip_jax.pretrained.checkpoint import Checkpoint
from train_jax.data.images import Preprocess
from train_jax.errors import LoadError
from train_jax.weights import hub
from train_jax.weights.tensors import open_tensors
from train_jax.weights.wrappers import holds

__all__ = ["Checkpoint", "LoadError", "open_checkpoint"]
log = logging.getLogger(__name__)

_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_HUB_FALLBACK = ("pytorch_model*.bin", "open_clip_pytorch_model.bin")
_FORMATS = (
    "load opens run directories of train-jax (config.json with a task, tokenizer.json, preprocess.json, artifacts.json, "
    "checkpoints/), Hugging Face directories of CLIP, MetaCLIP 2, Chinese-CLIP, SigLIP and SigLIP 2 (config.json with a "
    f"model_type), open_clip directories ({open_clip.CONFIG}), folders of both halves of a CLIP (text_encoder/, "
    "tokenizer/, image_encoder/, feature_extractor/), weight files inside either directory, .pt files of OpenAI "
    "and Long-CLIP, .npz files of big_vision, .safetensors files of clip_jax.save, hf:org/name, and short names "
    "(clip-jax models)"
)


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """Opens the checkpoint at `path` (see `clip_jax.load`). Raises LoadError if the format is unknown."""
    path = hub.resolve(path, _HUB_FILES, _HUB_FALLBACK)
    if not path.exists():
        raise LoadError(f"{path}: no such file or folder. {_FORMATS}")
    try:
        checkpoint = _open_directory(path, step) if path.is_dir() else _open_file(path)
    except LoadError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Configurations are untrusted input: any value may have any type.
        raise LoadError(f"{path}: invalid configuration ({type(error).__name__}: {error})") from error
    if checkpoint is None:
        raise LoadError(f"{path} is not a model: it holds {_describe_content(path)}. {_FORMATS}")
    return checkpoint


def _describe_content(path: Path) -> str:
    if path.is_dir():
        return ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    return f"a {path.suffix or 'nameless'} file"


def _open_directory(path: Path, step: int | None) -> Checkpoint | None:
    run = run_directory.open_directory(path, step)
    if run is not None:
        return run
    # Many directories have both configurations. Without weights for transformers, the directory is open_clip's.
    has_both = (path / open_clip.CONFIG).is_file()
    hf_checkpoint = None if has_both and not hugging_face.find_weight_files(path) else hugging_face.open_directory(path)
    checkpoint = hf_checkpoint or open_clip.open_directory(path) or halves.open_directory(path)
    if has_both and checkpoint is not None:
        _warn_if_preprocessing_differs(path, checkpoint)
    return checkpoint


def _open_file(path: Path) -> Checkpoint | None:
    if path.suffix == ".npz":
        return big_vision.open_file(path)
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        return None
    if checkpoint := single_file.open_file(path):
        return checkpoint
    tensors = open_tensors(path)
    if any(holds(tensors, anchor) for anchor in hugging_face.ANCHORS):
        return hugging_face.open_directory(path.parent, path)
    if not any(holds(tensors, anchor) for anchor in (openai.ANCHOR, *timm.ANCHORS)):
        raise LoadError(f"{path} holds no CLIP: neither {openai.ANCHOR} nor {hugging_face.ANCHOR} is among its tensors")
    if (path.parent / open_clip.CONFIG).is_file() and not openai_file.is_openai_file(path, tensors):
        return open_clip.open_directory(path.parent, path)
    return openai_file.open_file(path)


def _warn_if_preprocessing_differs(path: Path, checkpoint: Checkpoint) -> None:
    """Logs a warning if the two configurations of a directory have different preprocessing."""

    def read(module) -> Preprocess | str | None:
        try:
            return module.open_preprocess(path, checkpoint.preprocess.size)
        except LoadError as error:
            return str(error)

    used, unused = (read(module) for module in (open_clip, image_processor))
    if checkpoint.kind != "open_clip":
        used, unused = unused, used
    if unused is not None and _unify_rounding(used) != _unify_rounding(unused):
        log.warning(
            "%s: two configurations have different image preprocessing. The one of the loaded weights (%s) is used: %s. The "
            "other is: %s. To use the other, load its weight file by path",
            path, checkpoint.files, used, unused,
        )  # fmt: skip


def _unify_rounding(preprocess: Preprocess | str) -> Preprocess | str:
    """Replaces the crop rounding of transformers by that of open_clip, a difference between all such configurations."""
    return (
        dataclasses.replace(preprocess, mode="crop") if getattr(preprocess, "mode", "") == "crop_floor" else preprocess
    )
