"""The format of `vqgan_jax.save`: a safetensors file with the options in its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from train_jax.compute import Compute
from train_jax.errors import LoadError
from train_jax.weights.tensors import open_tensors
from vqgan_jax.model import VQGANOptions
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors

_KEY = "vqgan_jax"  # metadata key


def to_bytes(options: VQGANOptions, compute: Compute, variables: Mapping[str, Any]) -> bytes:
    """Serialises options and variables as the content of a file."""
    metadata = {"model": options.to_dict(), "compute": compute.to_dict()}
    arrays = {name: np.array(x, order="C") for name, x in flatten_dict(dict(variables), sep="/").items()}
    return safetensors.numpy.save(arrays, metadata={_KEY: json.dumps(metadata)})


def open_file(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a file; returns None for other formats."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
    except safetensors.SafetensorError as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    if text is None:
        return None

    def read() -> tuple[dict, str]:
        arrays = {name: tensor.load() for name, tensor in open_tensors(path).items()}
        return unflatten_dict(arrays, sep="/"), str(path)

    with convert_errors(path):
        metadata = json.loads(text)
        compute = Compute.parse(metadata["compute"], "compute")
        return Checkpoint(name=str(path), format="single file", model=metadata["model"], read=read, compute=compute)
