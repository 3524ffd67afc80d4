"""State files: (z, optimiser, average, step), the losses so far, and the painting's identity. Resuming is exact."""

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
from vqgan_jax.guided.options import FREE


def identity(vq, clips: Sequence, jobs: Sequence, clip_weights: Sequence[float]) -> dict[str, Any]:
    """The models, prompts, seeds, files and options that a state belongs to, as JSON holds them."""
    options = [job.options.to_json() for job in jobs]
    files = [metadata.file_hashes(job.options, [job.scene]) for job in jobs]
    for values in options:
        for name in FREE:
            del values[name]
        if values["lr_decay"] == 1 and not values["temperature_end"]:  # no schedule depends on the number of steps
            del values["steps"]
    about = {
        "vqgan": vq.fingerprint,
        "clips": [clip.fingerprint for clip in clips],
        "clip_weights": list(clip_weights),
        "prompts": [[[p.kind, p.content, p.weight, repr(p.stop)] for p in job.scene] for job in jobs],
        "seeds": [int(job.seed) for job in jobs],
        "files": files,
        "options": options,
    }
    return json.loads(json.dumps(about))


def write(path: str | Path, about: dict, state: trajectory.State, losses: np.ndarray) -> None:
    """Writes a state file; the previous one stays until the new one is complete."""
    path = Path(path)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as file:
        arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
        np.savez(file, about=json.dumps(about), losses=losses, **arrays)
    os.replace(unfinished, path)


def read(path: str | Path, about: dict, like: trajectory.State, steps: int) -> tuple[trajectory.State, np.ndarray]:
    """Reads the state and the losses so far.

    Args:
      about: the identity of the painting that goes on.
      like: a state of the same painting; the new one is put on its devices.
      steps: in all.

    Raises LoadError for a file that holds no state, or the state of another painting.
    """
    try:
        names = [f"leaf{i}" for i in range(len(jax.tree.leaves(like)))]
        file = read_arrays(path, ("about", "losses", *names))
        saved_about = dict(json.loads(str(file["about"])))
        losses = np.asarray(file["losses"], np.float32)
        leaves = [file[name] for name in names]
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path} holds no state of a painting ({error})") from error
    for name, expected in about.items():
        if (saved := saved_about.get(name)) != expected:
            raise LoadError(f"{path} is the state of another painting: {_difference(name, saved, expected)}")
    templates, treedef = jax.tree.flatten(like)
    pairs = zip(names, leaves, templates, strict=True)
    mismatched = [name for name, leaf, template in pairs if leaf.shape != template.shape]
    if mismatched or losses.ndim != 2:
        raise LoadError(f"{path} holds no state of this painting: {', '.join(mismatched) or 'losses'} of another shape")
    if losses.shape[1] > steps:
        raise LoadError(f"{path}: {losses.shape[1]} steps are done already; steps = {steps} must be at least that")
    arrays = [jax.device_put(leaf, template.sharding) for leaf, template in zip(leaves, templates, strict=True)]
    return jax.tree.unflatten(treedef, arrays), losses


def _difference(name: str, saved: Any, expected: Any) -> str:
    """Describes the first difference of two values."""
    if isinstance(saved, dict) and isinstance(expected, dict):
        key = next(k for k in saved.keys() | expected.keys() if saved.get(k) != expected.get(k))
        return _difference(f"{name} {key}", saved.get(key), expected.get(key))
    if isinstance(saved, list) and isinstance(expected, list) and len(saved) == len(expected) and name == "options":
        return _difference(name, *next((a, b) for a, b in zip(saved, expected, strict=True) if a != b))
    return f"its {name} is {saved}, and {expected} is asked for"
