"""Reading of run directories: config, artifacts, weights."""

import hashlib
import json
from collections.abc import Sequence

from train_jax import trained_weights
from train_jax.checkpoint import CheckpointError
from train_jax.errors import LoadError
from train_jax.paths import AnyPath


def open_config(directory: AnyPath, task: str, what: str, artifacts: Sequence[str] = ()) -> dict | None:
    """Reads the config of a run from its `config.json`; None if the folder is no run directory.

    Args:
      task: the task module that the run must have.
      what: the kind of model, for messages: "a CLIP".
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
    """Loads `(params, extra, name)` of a run by `trained_weights.load_weights`; `name` includes the step.

    Raises LoadError if there are none that can be read.
    """
    try:
        params, extra, step = trained_weights.load_weights(directory / "checkpoints", step)
    except (FileNotFoundError, CheckpointError) as error:
        raise LoadError(str(error)) from error
    return params, extra, f"{directory} (step {step})"


def check_artifacts(directory: AnyPath, artifacts: Sequence[str] = ()) -> None:
    """Checks that a run's artifacts, at least these, are the files that it was trained with; LoadError if not."""
    file = directory / "artifacts.json"
    try:
        hashes = dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        files = " and which ".join(artifacts) or "files"
        raise LoadError(f"{file} cannot be read ({error}), so nothing says which {files} the weights need") from error
    for name in artifacts:
        if name not in hashes:
            raise LoadError(f"{file} does not mention {name}: it holds {', '.join(hashes) or 'nothing'}")
    for name, expected_hash in hashes.items():
        if not (directory / name).is_file():
            raise LoadError(f"{directory / name} is missing: the weights need the file of SHA-256 {expected_hash[:12]}…")
        actual_hash = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if actual_hash != expected_hash:
            kind = "tokenizer" if name == "tokenizer.json" else name
            raise LoadError(
                f"wrong {kind} for the weights: {directory / name} has SHA-256 {actual_hash[:12]}…, and they were "
                f"trained with {expected_hash[:12]}…. Put the original file back, or train in another directory"
            )
