"""Models in files: one module a format, each with a table from its names to ours.

open_checkpoint(path) -> Checkpoint     what the files tell, before any weight is read
"""

import dataclasses
import logging
from pathlib import Path

from clip_jax.pretrained import big_vision, hugging_face, image_processor, open_clip, openai, openai_file, run_directory
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
_KINDS = (
    "load opens run directories of train-jax (config.json with a task, tokenizer.json, preprocess.json, artifacts.json, "
    "checkpoints/), Hugging Face directories of CLIP and SigLIP (config.json with a model_type), open_clip directories "
    f"({open_clip.CONFIG}), weight files of both with their directory around them, OpenAI's .pt files, big_vision's .npz "
    "files, and hf:org/name"
)


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """What the files at `path` tell of a model (see `clip_jax.load`). Raises LoadError if that is none that is known."""
    path = hub.resolve(path, _HUB_FILES, _HUB_FALLBACK)
    if not path.exists():
        raise LoadError(f"{path}: no such file or folder. {_KINDS}")
    try:
        checkpoint = _open_directory(path, step) if path.is_dir() else _open_file(path)
    except LoadError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Configurations are other people's: any value can be of any kind.
        raise LoadError(f"{path}: a configuration is not as expected ({type(error).__name__}: {error})") from error
    if checkpoint is None:
        raise LoadError(f"{path} is no model: it holds {_content(path)}. {_KINDS}")
    return checkpoint


def _content(path: Path) -> str:
    if path.is_dir():
        return ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    return f"a {path.suffix or 'nameless'} file"


def _open_directory(path: Path, step: int | None) -> Checkpoint | None:
    run = run_directory.open_directory(path, step)
    if run is not None:
        return run
    # Many directories are both; where transformers' own weights are not there, open_clip's are meant.
    both = (path / open_clip.CONFIG).is_file()
    theirs = None if both and not hugging_face.weight_files(path) else hugging_face.open_directory(path)
    checkpoint = theirs or open_clip.open_directory(path)
    if both and checkpoint is not None:
        _warn_of_another_preprocessing(path, checkpoint)
    return checkpoint


def _open_file(path: Path) -> Checkpoint | None:
    if path.suffix == ".npz":
        return big_vision.open_file(path)
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        return None
    tensors = open_tensors(path)
    if holds(tensors, hugging_face.ANCHOR):
        return hugging_face.open_directory(path.parent, path)
    if not holds(tensors, openai.ANCHOR):
        raise LoadError(f"{path} holds no CLIP: neither {openai.ANCHOR} nor {hugging_face.ANCHOR} is among its tensors")
    if (path.parent / open_clip.CONFIG).is_file() and not openai_file.is_openais(path, tensors):
        return open_clip.open_directory(path.parent, path)
    return openai_file.open_file(path)


def _warn_of_another_preprocessing(path: Path, checkpoint: Checkpoint) -> None:
    """Logs that a directory holds two configurations that prepare pictures differently, and which of them is used."""

    def read(module) -> Preprocess | str | None:
        try:
            return module.open_preprocess(path, checkpoint.preprocess.size)
        except LoadError as error:
            return str(error)

    ours, other = (read(module) for module in (open_clip, image_processor))
    if checkpoint.kind != "open_clip":
        ours, other = other, ours
    if other is not None and _rounded_alike(ours) != _rounded_alike(other):
        log.warning(
            "%s: two configurations prepare pictures differently. Used is that of the weights that are loaded (%s): %s. The "
            "other says: %s. To use the other, load its weight file by name",
            path, checkpoint.files, ours, other,
        )  # fmt: skip


def _rounded_alike(preprocess: Preprocess | str) -> Preprocess | str:
    """Without the difference in rounding that transformers and open_clip always have."""
    return (
        dataclasses.replace(preprocess, mode="crop") if getattr(preprocess, "mode", "") == "crop_floor" else preprocess
    )
