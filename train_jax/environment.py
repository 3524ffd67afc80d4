"""Environment of a run: code version, packages, devices and cost of the step, recorded in `environment.json` at each start.

The file holds `{"starts": [{...}, ...]}`, one object for each time that the run was started or resumed (of weights that were
merged or blended, one with time, step, code and versions):

    time                   unix time in seconds, after compilation and before the first update
    step                   step from which the run starts
    code                   {"commit": hash of the git commit, "dirty": whether tracked files differ from it} of this
                           project's clone; null if it is not in one, or if git is missing
    versions               package -> version, of Python, of all packages that this project requires, and of accelerators;
                           null for one that is not installed as a package
    device, devices, hosts kind of the devices, their number in the mesh, and the number of processes
    runs                   number of runs that the compiled step trains (`train_jax.sweep.together`); mostly 1
    peak_bytes             memory that the compiled step needs on each device
    flops_per_example      analytic FLOPs of an example's forward and backward pass; null if they are unknown
    parameters             player -> number of parameters
    records                number of training records
"""

import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from train_jax import paths, profiling
from train_jax.paths import AnyPath
from train_jax.prepare import Prepared

log = logging.getLogger(__name__)

FILE = "environment.json"
_PROJECT = "multimodal-jax"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", _PROJECT)
_ACCELERATORS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
_GIT_SECONDS = 20  # a clone on a shared disk may be slow; a run does not wait longer


def record_start(workdir: AnyPath, prepared: Prepared, compiled: jax.stages.Compiled, step: int, *, runs: int = 1) -> None:
    """Appends the environment of a run that starts from `step` to `environment.json`.

    Args:
      runs: number of runs that the compiled step trains.
    """
    _append(workdir / FILE, describe_environment(prepared, compiled) | {"step": step, "runs": runs})


def record_code(workdir: AnyPath, step: int) -> None:
    """Appends time, code and versions to `environment.json`, for weights of a step that were made without training."""
    _append(workdir / FILE, describe_code() | {"step": step})


def describe_environment(prepared: Prepared, compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns what `environment.json` holds for a start now, without its step and its number of runs."""
    flops = prepared.task.flops
    return {
        **describe_code(),
        "device": prepared.mesh.devices.flat[0].device_kind,
        "devices": prepared.mesh.size,
        "hosts": jax.process_count(),
        "peak_bytes": profiling.memory_plan(compiled).needed,
        "flops_per_example": None if flops is None else float(flops),
        "parameters": {
            player: sum(math.prod(x.shape) for x in jax.tree.leaves(params))
            for player, params in prepared.state.abstract.params.items()
        },
        "records": prepared.records,
    }


def describe_code() -> dict[str, Any]:
    """Returns the time, and the version of the code and of packages, as `environment.json` holds them."""
    return {"time": time.time(), "code": code_version(Path(__file__)), "versions": describe_versions()}


@functools.cache
def code_version(file: Path) -> dict[str, Any] | None:
    """Returns git's commit of a source file, and whether tracked files of its clone differ from the commit.

    None if git does not track the file (such as an installed package in an environment inside of another clone), or if git
    is missing or fails.
    """
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        lines = _git(file.parent, "status", "--porcelain=v2", "--branch", "--untracked-files=no").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("no git commit of %s: %s", file, error)
        return None
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    return {"commit": commits[0], "dirty": any(not line.startswith("#") for line in lines)} if commits else None


@functools.cache
def describe_versions() -> dict[str, str | None]:
    """Returns the versions of Python and of packages, as `environment.json` holds them."""
    try:
        lines = [line for line in importlib.metadata.requires(_PROJECT) or () if "extra ==" not in line]
    except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
        lines = []
    required = [re.match(r"[\w.-]+", line)[0] for line in lines]
    accelerators = [name for name in _ACCELERATORS if _version(name)]
    return {"python": platform.python_version()} | {name: _version(name) for name in (*_PACKAGES, *required, *accelerators)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # reading must not disturb commands in the clone
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=_GIT_SECONDS, env=environment
    ).stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _append(file: AnyPath, start: dict[str, Any]) -> None:
    starts = [*_read_starts(file), start]
    paths.replace_file(file, (json.dumps({"starts": starts}, indent=2, sort_keys=True) + "\n").encode())


def _read_starts(file: AnyPath) -> list[dict[str, Any]]:
    """Reads the recorded starts of a run. A damaged file is logged and begun anew, since no run depends on it."""
    try:
        starts = json.loads(file.read_text())["starts"] if file.exists() else []
        if not isinstance(starts, list):
            raise TypeError("its starts are no list")
        return starts
    except (ValueError, TypeError, KeyError, OSError) as error:
        log.warning("%s cannot be read (%s): its starts are forgotten", file, error)
        return []
