"""Run directories, as `train-jax` writes them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import read_json
from train_jax import checkpoint
from train_jax.data.images import Preprocess
from train_jax.data.text import open_tokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import STATS, flat

_PLAYER = "clip"  # the key of a run's parameters


def open_directory(path: Path, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run (or that of `step`), averaged weights where there are any; None if it is no run."""
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    task = config.get("task")
    if task is None:
        return None
    if task != "clip_jax.task":
        raise LoadError(f"{path} is a run of {task!r}, not of a CLIP ('clip_jax.task')")
    _check_artifacts(path)
    model = config["model"]

    def read() -> tuple[dict[str, np.ndarray], str]:
        try:
            params, extra, found = checkpoint.load_weights(path / "checkpoints", step)
        except (FileNotFoundError, checkpoint.CheckpointError) as error:
            raise LoadError(str(error)) from error
        stats = {STATS + name: x for name, x in flat(extra.get("batch_stats", {})).items()}
        return flat(params[_PLAYER]) | stats, f"{path} (step {found})"

    return Checkpoint(
        name=str(path),
        kind="run directory",
        model=model,
        tokenizer=open_tokenizer(path / "tokenizer.json", model["text"]["context_length"]),
        preprocess=Preprocess.from_json((path / "preprocess.json").read_text("utf-8")),
        read=read,
    )


def _check_artifacts(directory: Path) -> None:
    """The files beside the weights must be those that the weights were trained with."""
    file = directory / "artifacts.json"
    try:
        expected = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read ({error}), so nothing says which tokenizer the weights need") from error
    for name in ("tokenizer.json", "preprocess.json"):
        if name not in expected:
            raise LoadError(f"{file} does not mention {name}: it holds {', '.join(expected) or 'nothing'}")
    for name, wanted in expected.items():
        if not (directory / name).is_file():
            raise LoadError(f"{directory / name} is missing: the weights need the file of SHA-256 {wanted[:12]}…")
        seen = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if seen != wanted:
            kind = "tokenizer" if name == "tokenizer.json" else name
            raise LoadError(
                f"wrong {kind} for the weights: {directory / name} has SHA-256 {seen[:12]}…, and they were trained with "
                f"{wanted[:12]}…. Put the original file back, or train in another directory"
            )
