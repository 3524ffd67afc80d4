"""Reading of JSON configuration files."""

import json
from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError


def read_json(file: Path) -> dict:
    """Reads a JSON object from a file. Raises LoadError if the file is missing or holds no JSON object."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise LoadError(f"{file} is missing" if isinstance(error, FileNotFoundError) else f"{file}: {error}") from None
    except ValueError as error:
        raise LoadError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{file} must hold an object, not a {type(content).__name__}")
    return content


def read_section(config: Mapping, name: str, file: Path) -> dict:
    """Returns a copy of the object `config[name]`. Raises LoadError if it is missing or not an object."""
    if not isinstance(config.get(name), Mapping):
        raise LoadError(f"{file}: {name} = {config.get(name)!r}; it must be an object")
    return dict(config[name])
