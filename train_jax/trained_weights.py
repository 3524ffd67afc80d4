"""Loading of a run's weights for inference: parameters and averages alone, onto one device, from checkpoints of any
mesh.
"""

import logging
import os

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from train_jax import paths
from train_jax.checkpoint import CheckpointError, first_line, partial_load

log = logging.getLogger(__name__)


def load_weights(directory: str | os.PathLike, step: int | None = None) -> tuple[dict, dict, int]:
    """Loads a run's weights for inference: `(params, extra, step)`; of each player the average, where there is one.

    Reads nothing else of the checkpoint, onto one device, whatever mesh wrote it. `step`: None for the newest readable.
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
            return *_load_weights(directory / str(candidate)), candidate
        except Exception as error:
            failures.append(f"{directory / str(candidate)}: {type(error).__name__}: {first_line(error)}")
            log.error("checkpoint %s cannot be read", failures[-1])
    raise CheckpointError("no checkpoint can be read:\n  " + "\n  ".join(failures))


def _load_weights(path: paths.AnyPath) -> tuple[dict, dict]:
    saved = ocp.metadata(path).metadata
    device = SingleDeviceSharding(jax.local_devices()[0])

    def abstract(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)

    parts = ("average" if "average" in saved else "params", "ema")
    with partial_load():
        loaded = ocp.load(path, {part: abstract(saved[part]) for part in (*parts, "extra") if saved.get(part)})
    params = {player: params for part in parts for player, params in loaded.get(part, {}).items()}
    return params, loaded.get("extra", {})
