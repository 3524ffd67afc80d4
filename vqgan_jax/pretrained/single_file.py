"""The format of `vqgan_jax.save`: a safetensors file with the options in its metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from train_jax.compute import Compute
from train_jax.weights import single_file
from vqgan_jax.model import VQGANOptions
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors

_KEY = "vqgan_jax"


def to_bytes(options: VQGANOptions, compute: Compute, variables: Mapping[str, Any]) -> bytes:
    """Serialises options and variables as the content of a file."""
    description = {"model": options.to_dict(), "compute": compute.to_dict()}
    return single_file.to_bytes(_KEY, description, flatten_dict(dict(variables), sep="/"))


def open_file(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a file; returns None for other formats."""
    opened = single_file.open_file(path, _KEY)
    if opened is None:
        return None
    description, read_arrays = opened

    def read() -> tuple[dict, str]:
        return unflatten_dict(read_arrays(), sep="/"), str(path)

    with convert_errors(path):
        compute = Compute.parse(description["compute"], "compute")
        return Checkpoint(name=str(path), format="single file", model=description["model"], read=read, compute=compute)
