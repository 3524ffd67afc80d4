"""State files for exact resumption: (z, optimiser, average, step), past losses, and the identity of the painting."""

import dataclasses
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
from vqgan_jax.guided.options import FREE, add_later_options
from vqgan_jax.guided.prior import Prior
from vqgan_jax.guided.prompts import Part
from vqgan_jax.vqgan import Vqgan


def make_identity(
    vq: Vqgan | None, clips: Sequence, prior: Prior | None, jobs: Sequence, clip_weights: Sequence[float]
) -> dict[str, Any]:
    """Collects the models, prompts, seeds, files and options of a painting as JSON values."""
    options = [job.options.to_json() for job in jobs]
    files = [metadata.hash_files(job.options, [job.scene]) for job in jobs]
    for values in options:
        for name in FREE:
            del values[name]
        if values["lr_decay"] == 1 and not values["temperature_end"] and values["prior"] is None:
            del values["steps"]  # no schedule depends on it
    identity = {
        "vqgan": vq and vq.fingerprint,
        "clips": [clip.fingerprint for clip in clips],
        "dtypes": [*([vq.compute.dtype] if vq else []), *(clip.dtype for clip in clips)],
        "clip_weights": list(clip_weights),
        "prompts": [[_identify(part) for part in job.scene] for job in jobs],
        "seeds": [int(job.seed) for job in jobs],
        "files": files,
        "options": options,
    }
    if prior is not None:  # which earlier versions did not have
        identity["prior"] = prior.fingerprint
    return json.loads(json.dumps(identity))


def _identify(part: Part) -> list:
    """Returns the fields of a part; those that earlier versions did not have only if they are not the default."""
    values = {field: getattr(part, field.name) for field in dataclasses.fields(part)[4:]}
    later = {field.name: value for field, value in values.items() if value != field.default}
    return [part.kind, part.content, part.weight, repr(part.stop), *([later] if later else [])]


def write_state(path: str | Path, identity: dict, state: trajectory.State, losses: np.ndarray) -> None:
    """Writes a state file atomically: an existing file is replaced when the new one is complete."""
    path = Path(path)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as file:
        arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
        np.savez(file, about=json.dumps(identity), losses=losses, **arrays)
    os.replace(unfinished, path)


def read_state(
    path: str | Path, identity: dict, template: trajectory.State, steps: int
) -> tuple[trajectory.State, np.ndarray]:
    """Reads the state file of a painting: the state of the optimisation and the losses of the completed steps.

    Args:
      identity: seed, models and options that must equal those in the file.
      template: a state of the same painting, with the shapes and shardings of the result.
      steps: total number of steps.

    Raises LoadError for a file that is not a state file, or is the state of another painting.
    """
    try:
        names = [f"leaf{i}" for i in range(len(jax.tree.leaves(template)))]
        file = read_arrays(path, ("about", "losses", *names))
        saved_identity = dict(json.loads(str(file["about"])))
        saved_identity["options"] = [_complete(options) for options in saved_identity["options"]]
        losses = np.asarray(file["losses"], np.float32)
        leaves = [file[name] for name in names]
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{path} is not the state file of a painting ({error})") from error
    for name, expected in identity.items():
        if (saved := saved_identity.get(name)) != expected:
            raise LoadError(f"{path} is the state of another painting: {_describe_difference(name, saved, expected)}")
    template_leaves, treedef = jax.tree.flatten(template)
    compared = zip(names, leaves, template_leaves, strict=True)
    mismatched = [name for name, leaf, expected in compared if leaf.shape != expected.shape]
    if mismatched or losses.ndim != 2:
        raise LoadError(f"{path} is not a state of this painting: {', '.join(mismatched) or 'losses'} of another shape")
    if losses.shape[1] > steps:
        raise LoadError(f"{path}: {losses.shape[1]} steps are complete already; steps must be at least as many, not {steps}")
    arrays = [jax.device_put(leaf, x.sharding) for leaf, x in zip(leaves, template_leaves, strict=True)]
    return jax.tree.unflatten(treedef, arrays), losses


def _complete(options: dict[str, Any]) -> dict[str, Any]:
    """Adds the options that the version that wrote these did not have, as JSON values, without what is no identity."""
    absent = {*FREE, *({"steps"} - options.keys())}
    completed = json.loads(json.dumps(add_later_options(options)))
    return {name: value for name, value in completed.items() if name not in absent}


def _describe_difference(name: str, saved: Any, expected: Any) -> str:
    """Describes the first difference between two values."""
    if isinstance(saved, dict) and isinstance(expected, dict):
        key = next(k for k in (*expected, *saved) if saved.get(k) != expected.get(k))
        return _describe_difference(f"{name} {key}", saved.get(key), expected.get(key))
    are_lists = isinstance(saved, list) and isinstance(expected, list) and len(saved) == len(expected)
    if are_lists and name in ("options", "files"):
        return _describe_difference(name, *next((a, b) for a, b in zip(saved, expected, strict=True) if a != b))
    return f"{name} is {saved} in the file and {expected} in this painting"
