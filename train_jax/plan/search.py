"""Search for the fastest mesh, rematerialisation and micro-batch that fit a target, each planned in its own process."""

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file, sharding
from train_jax.sharding import AXES

OPTIONS = ("mesh", "compute.remat", "compute.micro_batch", "accumulate")  # that a search sets
_REMAT = ("none", "dots", "full")  # in order of decreasing memory
_PARTS = (1, 2, 4, 8)  # micro-batches of an update


class Candidate(NamedTuple):
    """Setting to plan.

    Attributes:
      mesh: sizes of the mesh axes.
      remat: `config.compute.remat`.
      parts: number of micro-batches.
      words: its overrides of the config.
    """

    mesh: tuple[int, int, int]
    remat: str
    parts: int
    words: tuple[str, ...]


def list_candidates(config: ConfigDict, devices: int, fixed: Sequence[str] = ()) -> list[Candidate]:
    """Lists settings, the most promising first; settings far from the first of each option come last.

    Meshes are all divisions of the devices over which the batch splits evenly. Micro-batches are those of
    `compute.micro_batch` where the task has this option, otherwise of `accumulate`.

    Args:
      config: the user's config.
      fixed: those of `OPTIONS` that keep their value.

    Raises ConfigError for invalid options, and if the batch does not split over a fixed mesh.
    """
    full = config_lib.resolve(config)
    batch_size, exact = full.data.batch_size, "micro_batch" in full.get("compute", {})
    kept = {name: config_file.option(full, name) for name in fixed}
    meshes = [sharding.mesh_shape(full.mesh, devices)] if "mesh" in kept else _list_meshes(devices)
    if "mesh" in kept:
        sharding.check_batch(AbstractMesh(meshes[0], AXES), batch_size, kept.get("accumulate", 1))
    remats = [kept["compute.remat"]] if "compute.remat" in kept else ["dots", "full", "none"]
    name = "compute.micro_batch" if exact else "accumulate"
    ranked = []
    for (i, mesh), (j, remat) in itertools.product(enumerate(meshes), enumerate(remats)):
        rows, rest = divmod(batch_size, mesh[0] * mesh[1])  # rows of a device
        if rest:
            continue
        choices = _PARTS
        if name in kept:
            choices = (sharding.parts_of(rows, kept[name] or rows) if exact else kept[name],)
        for k, parts in enumerate(choices):
            if rows % parts:
                continue
            words = [f"mesh.{axis}={size}" for axis, size in zip(AXES, mesh, strict=True)]
            words.append(f"compute.remat={remat}")
            if name not in kept:
                words.append(f"{name}={(rows // parts if parts > 1 else 0) if exact else parts}")
            words = tuple(f"{config_file.OPTION}{word}" for word in words)
            ranked.append((i + j + k, Candidate(mesh, remat, parts, words)))
    return [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]


def _list_meshes(devices: int) -> list[tuple[int, int, int]]:
    """Lists all sizes (data, fsdp, tensor) of a mesh: without tensor parallelism first, then by the size of fsdp."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [(devices // (f * t), f, t) for t in divisors for f in divisors if devices % (f * t) == 0]
    return sorted(meshes, key=lambda mesh: (mesh[2], mesh[1] not in (1, devices), mesh[1]))


def search(
    candidates: Sequence[Candidate], plan: Callable[[Sequence[str]], dict], max_plans: int
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Plans up to `max_plans` candidates. Yields each with its plan, or `{"error": …}`.

    Skips candidates that need more memory than one of the same mesh that does not fit.

    Args:
      plan: function from the overrides of a candidate to its plan; see `run_plan`.
    """
    too_large: list[Candidate] = []
    count, start = 0, time.monotonic()
    for candidate in candidates:
        if any(_needs_more(candidate, other) for other in too_large):
            continue
        if count == max_plans:
            return
        count += 1
        words = " ".join(word.removeprefix(config_file.OPTION) for word in candidate.words)
        print(f"plan {count} of at most {max_plans}, {time.monotonic() - start:.0f} s: {words}", file=sys.stderr, flush=True)
        planned = plan(candidate.words)
        if planned.get("fits") is False:
            too_large.append(candidate)
        yield candidate, planned


def _needs_more(candidate: Candidate, other: Candidate) -> bool:
    more_is_kept = _REMAT.index(candidate.remat) <= _REMAT.index(other.remat)
    return candidate.mesh == other.mesh and candidate.parts <= other.parts and more_is_kept


def run_plan(words: Sequence[str], timeout: float | None = None) -> dict[str, Any]:
    """Runs `train-jax plan --json` in a process of its own. Returns its (last) plan, or `{"error": …}`.

    Args:
      timeout: seconds after which the process is killed; None: never.
    """
    command = [sys.executable, "-m", "train_jax", "plan", *words, "--json"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled in {timeout:.0f} s"}
    lines = run.stdout.splitlines()
    if run.returncode < 2 and lines:
        return json.loads(lines[-1])
    errors = run.stderr.strip().splitlines() or [f"the process ended with code {run.returncode}"]
    return {"error": errors[-1].removeprefix("train-jax plan: error: ")}


def rank(rows: Sequence[tuple[Candidate, dict[str, Any]]]) -> tuple[list[tuple[Candidate, dict[str, Any]]], str]:
    """Sorts plans: those that fit by time, or by memory if there are no times; then the others. Also returns by which."""
    key = "step_seconds" if any(plan.get("step_seconds") for _, plan in rows) else "peak_bytes"

    def order(row):
        plan = row[1]
        return ("mesh" not in plan, plan.get("fits") is False, plan.get(key) or math.inf)

    return sorted(rows, key=order), key


def format_table(rows: Sequence[tuple[Candidate, dict[str, Any]]]) -> str:
    """Formats ranked plans as a table, with the error of those that failed."""
    lines = [f"{'mesh':<28}{'remat':<8}{'parts':>5}  {'fits':<5}{'GiB':>8}{'ms':>11}{'MFU, %':>8}{'network, GiB':>14}"]
    for candidate, plan in rows:
        mesh = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, candidate.mesh, strict=True) if size != 1) or "1"
        line = f"{mesh:<28}{candidate.remat:<8}{candidate.parts:>5}  "
        if "mesh" not in plan:
            lines.append(f"{line}{plan['error'][:100]}")
            continue
        fits = {True: "yes", False: "no"}.get(plan["fits"], "?")
        seconds, mfu = plan["step_seconds"], plan["mfu"]
        traffic = sum(row["bytes"] for row in plan["collectives"]) / 2**30
        line += f"{fits:<5}{plan['peak_bytes'] / 2**30:>8.2f}{f'{1000 * seconds:,.1f}' if seconds else '':>11}"
        lines.append(f"{line}{f'{100 * mfu:.1f}' if mfu else '':>8}{traffic:>14.2f}")
    return "\n".join(lines)
