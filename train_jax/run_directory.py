"""Reading of run directories: config, artifacts, weights."""

import hashlib
import json
import re
from collections.abc import Sequence

from train_jax import paths, trained_weights
from train_jax.checkpoint import CheckpointError
from train_jax.errors import LoadError
from train_jax.paths import AnyPath


def open_config(directory: AnyPath, task: str, what: str, artifacts: Sequence[str] = ()) -> dict | None:
    """Reads the config of a run from its `config.json`; returns None if the folder is not a run directory.

    Args:
      task: required task module of the run.
      what: kind of the model for messages, such as "a CLIP".
      artifacts: required artifacts, which are checked against their saved hashes.

    Raises LoadError for a run of another task, and for missing or changed artifacts.
    """
    config = read_config(directory)
    if config is None:
        return None
    if config["task"] != task:
        raise LoadError(f"{directory} is a run of {config['task']!r}, not of {what} ({task!r})")
    if artifacts:
        check_artifacts(directory, artifacts)
    return config


def read_config(directory: AnyPath) -> dict | None:
    """Reads the config of a run of any task; returns None if the folder is not a run directory.

    Raises LoadError for a damaged `config.json`.
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
    return config if "task" in config else None


def load_weights(directory: AnyPath, step: int | None = None) -> tuple[dict, dict, str]:
    """Loads the weights of a run with `trained_weights.load_weights`. Returns `(params, extra, name)`.

    `name` contains directory and step. Raises LoadError if no checkpoint can be read.
    """
    try:
        params, extra, step = trained_weights.load_weights(directory / "checkpoints", step)
    except (FileNotFoundError, CheckpointError) as error:
        raise LoadError(str(error)) from error
    return params, extra, f"{directory} (step {step})"


def parse_name(name: str) -> tuple[AnyPath | None, int]:
    """Returns directory and step of the name of a run's weights, as `load_weights` makes it; `(None, 0)` for another."""
    found = re.fullmatch(r"(.+) \(step (\d+)\)", name)
    return (paths.path(found[1]), int(found[2])) if found else (None, 0)


def check_artifacts(directory: AnyPath, artifacts: Sequence[str] = ()) -> None:
    """Raises LoadError unless the artifacts of a run are the files that it was trained with.

    Args:
      artifacts: artifacts that must exist.
    """
    file = directory / "artifacts.json"
    try:
        hashes = dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        files = " and which ".join(artifacts) or "files"
        raise LoadError(f"{file} cannot be read ({error}), so it is unknown which {files} the weights need") from error
    for name in artifacts:
        if name not in hashes:
            raise LoadError(f"{file} does not mention {name}: it holds {', '.join(hashes) or 'nothing'}")
    for name, expected_hash in hashes.items():
        if not (directory / name).is_file():
            raise LoadError(f"{directory / name} is missing: the weights need the file with SHA-256 {expected_hash[:12]}…")
        actual_hash = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if actual_hash != expected_hash:
            kind = "tokenizer" if name == "tokenizer.json" else name
            raise LoadError(
                f"wrong {kind} for the weights: {directory / name} has SHA-256 {actual_hash[:12]}…, and they were "
                f"trained with {expected_hash[:12]}…. Put the original file back, or train in another directory"
            )
