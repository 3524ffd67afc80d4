"""CLIP checkpoints in run directories of `train-jax`."""

from pathlib import Path

import numpy as np

from clip_jax.options import CLIPCompute
from clip_jax.pretrained.checkpoint import Checkpoint
from train_jax import run_directory
from train_jax.data.images import Preprocess
from train_jax.data.text import open_tokenizer
from train_jax.weights.layout import STATS, flatten

_PARAMS_KEY = "clip"  # key of the parameters in a run
_TOKENIZER, _PREPROCESS = "tokenizer.json", "preprocess.json"


def open_directory(path: Path, step: int | None = None) -> Checkpoint | None:
    """Opens a checkpoint of a run directory, by default the newest. Returns None if `path` is not a run directory.

    Uses averaged weights if the checkpoint has any.
    """
    config = run_directory.open_config(path, "clip_jax.task", "a CLIP", (_TOKENIZER, _PREPROCESS))
    if config is None:
        return None
    model = config["model"]

    def read() -> tuple[dict[str, np.ndarray], str]:
        params, mutable_variables, name = run_directory.load_weights(path, step)
        stats = {STATS + name: x for name, x in flatten(mutable_variables.get("batch_stats", {})).items()}
        return flatten(params[_PARAMS_KEY]) | stats, name

    return Checkpoint(
        name=str(path),
        kind="run directory",
        model=model,
        compute=CLIPCompute.parse(config["compute"], "compute"),
        tokenizer=open_tokenizer(path / _TOKENIZER, model["text"]["context_length"]),
        preprocess=Preprocess.from_json((path / _PREPROCESS).read_text("utf-8")),
        read=read,
        files=f"checkpoints, config.json, {_TOKENIZER}, {_PREPROCESS}",
    )
