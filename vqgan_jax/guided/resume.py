"""State files: (z, optimiser, average, step), the losses so far, and what they belong to. A resumed painting is exact."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train_jax.data.files import read_arrays
from train_jax.errors import LoadError
from vqgan_jax.guided import metadata, trajectory

# Options that change how a trajectory is computed or shown, and not where it goes.
_FREE = ("quality", "save_every", "memory", "micro_cuts", "remat")


def identity(vq, clips: Sequence, jobs: Sequence, eye_weights: Sequence[float]) -> dict[str, Any]:
    """What a state belongs to, as JSON holds it."""
    options = [job.options.to_json() for job in jobs]
    files = [metadata.files(job.options, [job.scene]) for job in jobs]
    for one in options:
        for name in _FREE:
            del one[name]
        if one["lr_decay"] == 1 and not one["temperature_end"]:  # no schedule ties it to its whole length
            del one["steps"]
    about = {
        "vqgan": vq.fingerprint,
        "clips": [clip.fingerprint for clip in clips],
        "clip_weights": list(eye_weights),
        "prompts": [[[p.kind, p.what, p.weight, repr(p.stop)] for p in job.scene] for job in jobs],
        "seeds": [int(job.seed) for job in jobs],
        "files": files,
        "options": options,
    }
    return json.loads(json.dumps(about))


def write(path: str | Path, about: dict, state: trajectory.State, losses: np.ndarray) -> None:
    """Writes a state file; the one before stays until the new one is whole."""
    path = Path(path)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as file:
        arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
        np.savez(file, about=json.dumps(about), losses=losses, **arrays)
    os.replace(unfinished, path)


def read(path: str | Path, about: dict, like: trajectory.State, steps: int) -> tuple[trajectory.State, np.ndarray]:
    """The state and the losses so far. LoadError if the file is none, or of another painting, which it names."""
    try:
        names = [f"leaf{i}" for i in range(len(jax.tree.leaves(like)))]
        file = read_arrays(path, ("about", "losses", *names))
        found = dict(json.loads(str(file["about"])))
        losses = np.asarray(file["losses"], np.float32)
        leaves = [file[name] for name in names]
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path} holds no state of a painting ({error})") from error
    for name, wanted in about.items():
        if found.get(name) != wanted:
            raise LoadError(f"{path} is the state of another painting: {_difference(name, found.get(name), wanted)}")
    places, structure = jax.tree.flatten(like)
    odd = [name for name, leaf, place in zip(names, leaves, places, strict=True) if leaf.shape != place.shape]
    if odd or losses.ndim != 2:
        raise LoadError(f"{path} holds no state of this painting: {', '.join(odd) or 'losses'} of another shape")
    if losses.shape[1] > steps:
        raise LoadError(f"{path}: {losses.shape[1]} steps are done already; steps = {steps} must be at least that")
    placed = [jax.device_put(leaf, place.sharding) for leaf, place in zip(leaves, places, strict=True)]
    return jax.tree.unflatten(structure, placed), losses


def _difference(name: str, found: Any, wanted: Any) -> str:
    """The first thing in which two values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        return _difference(f"{name} {key}", found.get(key), wanted.get(key))
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted) and name == "options":
        return _difference(name, *next((a, b) for a, b in zip(found, wanted, strict=True) if a != b))
    return f"its {name} is {found}, and {wanted} is asked for"
