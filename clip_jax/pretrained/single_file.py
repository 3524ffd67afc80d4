"""The format of `clip_jax.save`: a safetensors file with options, preprocessing and tokenizer in its metadata."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.pretrained.checkpoint import Checkpoint
from train_jax.data.images import Preprocess
from train_jax.data.text import AnyTokenizer, parse_tokenizer
from train_jax.errors import LoadError
from train_jax.weights import single_file
from train_jax.weights.layout import STATS, flatten

_KEY = "clip_jax"


def to_bytes(
    options: CLIPOptions, compute: CLIPCompute, tokenizer: AnyTokenizer, preprocess: Preprocess, variables: Mapping
) -> bytes:
    """Serialises a model as the content of a file. `variables` are float32 arrays."""
    description = {
        "model": options.to_dict(),
        "compute": compute.to_dict(),
        "tokenizer": tokenizer.to_json(),
        "preprocess": preprocess.to_json(),
    }
    stats = {STATS + name: x for name, x in flatten(variables.get("batch_stats", {})).items()}
    return single_file.to_bytes(_KEY, description, flatten(variables["params"]) | stats)


def open_file(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a file; returns None for other formats. Raises LoadError for an invalid description."""
    opened = single_file.open_file(path, _KEY)
    if opened is None:
        return None
    description, read_arrays = opened

    def read() -> tuple[dict[str, np.ndarray], str]:
        return read_arrays(), str(path)

    try:
        model = description["model"]
        return Checkpoint(
            name=str(path),
            kind="single file",
            model=model,
            compute=CLIPCompute.parse(description["compute"], "compute"),
            tokenizer=parse_tokenizer(description["tokenizer"], model["text"]["context_length"]),
            preprocess=Preprocess.from_json(description["preprocess"]),
            read=read,
            files=path.name,
        )
    except KeyError as error:
        raise LoadError(f"{path} describes no model that can be built: it lacks {error}") from error
