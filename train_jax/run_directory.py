"""Run directories read back: what a run says of itself, its artifacts, its weights."""

import hashlib
import json
from collections.abc import Sequence

from train_jax import trained_weights
from train_jax.checkpoint import CheckpointError
from train_jax.errors import LoadError
from train_jax.paths import AnyPath


def open_config(directory: AnyPath, task: str, what: str, artifacts: Sequence[str] = ()) -> dict | None:
    """The config of a run, as its `config.json` holds it; None if the folder is no run's.

    Args:
      task: the module that it must be a run of.
      what: what such a run makes, for messages: "a CLIP".
      artifacts: files beside the weights, which must be those that the weights were trained with.

    Raises LoadError for a run of another task, and for artifacts that are missing or have changed.
    """
    file = directory / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise LoadError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise LoadError(f"{file} must hold an object, not a {type(config).__name__}")
    if "task" not in config:
        return None
    if config["task"] != task:
        raise LoadError(f"{directory} is a run of {config['task']!r}, not of {what} ({task!r})")
    if artifacts:
        check_artifacts(directory, artifacts)
    return config


def load_weights(directory: AnyPath, step: int | None = None) -> tuple[dict, dict, str]:
    """`(params, extra, name)` of a run, as `trained_weights.load_weights` finds them; `name` tells the step.

    Raises LoadError if there are none that can be read.
    """
    try:
        params, extra, found = trained_weights.load_weights(directory / "checkpoints", step)
    except (FileNotFoundError, CheckpointError) as error:
        raise LoadError(str(error)) from error
    return params, extra, f"{directory} (step {found})"


def check_artifacts(directory: AnyPath, artifacts: Sequence[str] = ()) -> None:
    """LoadError unless a run's artifacts, these at least, are the files that it was trained with."""
    file = directory / "artifacts.json"
    try:
        expected = dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        files = " and which ".join(artifacts) or "files"
        raise LoadError(f"{file} cannot be read ({error}), so nothing says which {files} the weights need") from error
    for name in artifacts:
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
