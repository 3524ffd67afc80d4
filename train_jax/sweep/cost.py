"""Cost of the runs of a sweep that are due: updates, examples, FLOPs, and time where the speed is known."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train_jax import config as config_lib
from train_jax import prepare
from train_jax import task as task_lib
from train_jax.runs.read import Run
from train_jax.runs.text import align, format_seconds
from train_jax.sweep.points import Point
from train_jax.sweep.sweep import Sweep


def format_costs(sweep: Sweep, due: Sequence[Point]) -> str:
    """Formats a table of the points of a sweep: what is due and what it costs.

    FLOPs are analytic, those of the updates that are left; "" for a task that does not count them. Times are those of the
    examples that are left at the median speed of the sweep's own runs, one after the other; "" before any has trained.
    """
    runs = dict(zip((point.name for point in sweep.points), sweep.read(), strict=True))
    speed = _measure_speed(list(runs.values()))
    flops: dict[str, float | None] = {}
    rows = [["run", "status", "updates left", "examples", "FLOPs", "time"]]
    totals = np.zeros(3)
    for point in sweep.points:
        run, config = runs[point.name], config_lib.resolve(point.config)
        left = max(config.steps - (run.checkpoint or 0), 0) if point in due else 0
        examples = left * config.data.batch_size
        key = prepare.as_json(config_lib.resolve(_without_seed(point)))
        if key not in flops:
            flops[key] = _count_flops(point)
        cost = (flops[key] or 0) * examples
        seconds = examples / speed if speed else 0
        totals += (examples, cost, seconds)
        rows.append([point.name, run.status if point in due or run.status != "empty" else "not due", f"{left:,}"])
        rows[-1] += [f"{examples:,}", f"{cost:.2e}" if cost else "", format_seconds(seconds) if seconds else ""]
    examples, cost, seconds = totals
    rows.append(["total", f"{len(due)} due", "", f"{examples:,.0f}", f"{cost:.2e}" if cost else ""])
    rows[-1].append(format_seconds(seconds) if seconds else "")
    return "\n".join(align(rows))


def _without_seed(point: Point):
    config = point.config.copy_and_resolve_references()
    with config.unlocked():
        config.seed = 0
    return config


def _count_flops(point: Point) -> float | None:
    """Counts the FLOPs of an example's forward and backward pass. Needs no data: files that are missing are placeholders."""
    module = task_lib.module(point.config)
    if not hasattr(module, "write_placeholders"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        config, _ = module.write_placeholders(config_lib.resolve(point.config), Path(folder))
        return module.make(config, Path(folder)).flops


def _measure_speed(runs: Sequence[Run]) -> float | None:
    """Returns the median examples per second of all runs that have trained; None if none has."""
    rates = [row["examples_per_second"] for run in runs for row in run.history if "examples_per_second" in row]
    return float(np.median(rates)) if rates else None
