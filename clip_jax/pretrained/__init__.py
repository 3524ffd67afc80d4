"""Models in files: one module a format, each with a table from its names to ours.

open_checkpoint(path) -> Checkpoint     what the files tell, before any weight is read
"""

from collections.abc import Callable
from pathlib import Path

from clip_jax.pretrained import big_vision, hub, hugging_face, open_clip, openai_file, run_directory
from clip_jax.pretrained.checkpoint import Checkpoint
from train_jax import paths
from train_jax.errors import LoadError

__all__ = ["Checkpoint", "LoadError", "open_checkpoint"]

# open_clip's directories often hold a config.json for transformers as well: either would do.
_DIRECTORIES: tuple[Callable, ...] = (hugging_face.open_directory, open_clip.open_directory)
_FILES: tuple[Callable, ...] = (big_vision.open_file, openai_file.open_file)
_KINDS = (
    "load opens run directories of train-jax (config.json with a task, tokenizer.json, preprocess.json, artifacts.json, "
    "checkpoints/), Hugging Face directories of CLIP and SigLIP (config.json with a model_type), open_clip directories "
    f"({open_clip.CONFIG}), OpenAI's .pt files, big_vision's .npz files, and hf:org/name"
)


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """What the files at `path` tell of a model (see `clip_jax.load`). Raises LoadError if that is none that is known."""
    if str(path).startswith(hub.PREFIX):
        path = hub.fetch(str(path))
    path = paths.weights(path)
    if path.is_dir():
        found = run_directory.open_directory(path, step) or _first(_DIRECTORIES, path)
        held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    elif path.is_file():
        found, held = _first(_FILES, path), f"a {path.suffix or 'nameless'} file"
    else:
        raise LoadError(f"{path}: no such file or folder. {_KINDS}")
    if found is None:
        raise LoadError(f"{path} is no model: it holds {held}. {_KINDS}")
    return found


def _first(openers: tuple[Callable, ...], path: Path) -> Checkpoint | None:
    return next((found for opener in openers if (found := opener(path)) is not None), None)
