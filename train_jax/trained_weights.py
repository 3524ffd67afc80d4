"""Loading of trained weights for inference, into the memory of the host, from checkpoints of any mesh."""

import logging
import os
from collections.abc import Mapping

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from train_jax import lora, paths
from train_jax.checkpoint import CheckpointError, first_line, partial_load

log = logging.getLogger(__name__)


def load_weights(
    directory: str | os.PathLike, step: int | None = None, *, merged: bool = True
) -> tuple[dict, dict, int]:
    """Loads the weights of a run for inference. Returns `(params, extra, step)`.

    Args:
      directory: checkpoint directory.
      step: step of the checkpoint; None: the newest readable checkpoint.
      merged: whether adapters (`train_jax.lora`) are added to their kernels; False: they are returned beside them.

    Players with a moving average get the average.
    Only these arrays are read, as NumPy arrays: a model may be rounded or sharded before it is copied to devices, which
    float32 weights might not fit.
    Raises FileNotFoundError if there is no checkpoint, CheckpointError if none can be read.
    """
    directory = paths.run_directory(directory)
    steps = sorted((int(p.name) for p in directory.glob("*") if p.name.isdigit()), reverse=True)
    if step is not None and step not in steps:
        raise FileNotFoundError(f"{directory} holds no checkpoint of step {step}; it holds {sorted(steps) or 'none'}")
    if not steps:
        raise FileNotFoundError(f"{directory} holds no checkpoint")
    failures = []
    for candidate in steps if step is None else [step]:
        try:
            params, extra = _load_weights(directory / str(candidate))
            return lora.merge(params) if merged else params, extra, candidate
        except Exception as error:
            failures.append(f"{directory / str(candidate)}: {type(error).__name__}: {first_line(error)}")
            log.error("checkpoint %s cannot be read", failures[-1])
    raise CheckpointError("no checkpoint can be read:\n  " + "\n  ".join(failures))


def write_weights(directory: str | os.PathLike, step: int, params: Mapping, extra: Mapping) -> None:
    """Writes weights as the checkpoint of a step, which `load_weights` reads. Training cannot resume from it."""
    content = {"params": params, **({"extra": extra} if extra else {})}
    ocp.save(paths.run_directory(directory) / str(step), jax.tree.map(np.asarray, content))


def _load_weights(path: paths.AnyPath) -> tuple[dict, dict]:
    """Loads `(params, extra)` of one checkpoint."""
    saved = ocp.metadata(path).metadata

    def make_abstract(tree):  # arrays without memory, of the type to load
        return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), tree)

    parts = ("average" if "average" in saved else "params", "ema")
    with partial_load():
        loaded = ocp.load(path, {part: make_abstract(saved[part]) for part in (*parts, "extra") if saved.get(part)})
    params = {player: params for part in parts for player, params in loaded.get(part, {}).items()}
    return params, loaded.get("extra", {})
