"""A model as one safetensors file: float32 weights, and a description of the model as JSON in the file's metadata.

The key of the description in the metadata is that of the kind of model, such as "vqgan_jax".
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from train_jax import paths
from train_jax.errors import LoadError
from train_jax.weights.tensors import open_tensors

SUFFIX = ".safetensors"


def to_bytes(key: str, description: Mapping, arrays: Mapping[str, Any]) -> bytes:
    """Serialises arrays by name, and a description that JSON can express, as the content of a file."""
    arrays = {name: np.array(x, order="C") for name, x in arrays.items()}
    return safetensors.numpy.save(arrays, metadata={key: json.dumps(description)})


def open_file(path: Path, key: str) -> tuple[dict, Callable[[], dict[str, np.ndarray]]] | None:
    """Opens a file: returns the description, and a function that reads the arrays by name.

    Returns None for other suffixes and for files without this key. Raises LoadError for damaged files.
    """
    if path.suffix != SUFFIX:
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(key)
    except safetensors.SafetensorError as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    if text is None:
        return None
    try:
        description = json.loads(text)
    except ValueError as error:
        raise LoadError(f"{path}: its metadata {key!r} is not JSON ({error})") from error
    if not isinstance(description, dict):
        raise LoadError(f"{path}: its metadata {key!r} must hold an object, not a {type(description).__name__}")
    return description, lambda: {name: tensor.load() for name, tensor in open_tensors(path).items()}


def write(path: str | Path, make_content: Callable[[], bytes]) -> None:
    """Writes the content of a new file.

    Raises ValueError for another suffix, and FileExistsError if the file exists.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: name the file as NAME{SUFFIX}")
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    content = make_content()
    paths.write_atomically(path, lambda file: file.write(content))


def exact_variables(variables: Any, name: str, dtype: str) -> Any:
    """Returns float32 weights as NumPy arrays. Raises ValueError if they were rounded.

    Args:
      name, dtype: name of the model and its precision, for the message.
    """
    variables = jax.tree.map(np.asarray, variables)
    if any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(variables)):
        raise ValueError(
            f"the weights of {name} were rounded to {dtype} when they were loaded, and would be written so: load the model "
            'with dtype="float32" to write it'
        )
    return variables
