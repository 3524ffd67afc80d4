"""Tables and curves of runs: what differs between them, what they reached, and what it cost."""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from train_jax import options as options_lib
from train_jax.errors import UserError
from train_jax.runs.read import Run, distinguish, find_runs

Paths = str | os.PathLike | Sequence[str | os.PathLike | Run]
Goal = Literal["min", "max"]

# Words of metrics of which low values are better. `perplexity` is missing because here it is that of a codebook.
_LOW_IS_BETTER = {"loss", "bits", "nats", "nll", "fid", "kid", "lpips", "mse", "rmse", "mae", "l1", "l2", "error", "errors",
                  "distance", "divergence", "rank", "seconds"}  # fmt: skip
_COUNTS = ("candidates", "captions", "classes", "images", "pairs", "prompts", "samples")  # of what was evaluated
_INTERVAL = ("low", "high")  # last parts of the names of the bounds of confidence intervals
_ABSENT = object()


def table(
    runs: Paths,
    metrics: Sequence[str] | None = None,
    *,
    at: int | None = None,
    goal: Goal | None = None,
    options: Sequence[str] = (),
) -> pd.DataFrame:
    """Tabulates runs, one row each: options that differ, metrics, cost, versions.

    Args:
      runs: run directories, folders of them, globs, files of evaluations (see `find_runs`), or runs that were read.
      metrics: names of metrics; None: the loss, and the results of the evaluators, in training and after it.
      at: step for the metrics at a step.
      goal: whether low or high values of all metrics are the better ones; None: by `goal_of` for each.
      options: options to show even if they do not differ, such as "optim.lr".

    Columns:
      run, status, step: see `train_jax.runs.read.Run`.
      options by their dotted name. Lists are tuples. None: the config lacks the option. Runs whose config cannot be read
        have None everywhere, and do not make an option differ.
      for each metric: NAME, its last value, also if it is not finite; "NAME (best)" and "NAME (best step)", of finite
        values; with `at`, "NAME (at STEP)", the last value at or before the step, nan for runs that have not reached it.
      seconds: time of training, see `count_seconds`.
      examples_per_second, mfu: medians over the logged updates.
      peak_bytes: memory of the compiled step on each device.
      flops: analytic FLOPs of all updates up to `step`.
      parameters: number of parameters of all players.
      device, devices, hosts, commit, and a version for each package: of the last start. A "+" behind the commit: the
        clone had changes that were not committed.
      error, path.

    `frame.attrs["options"]` lists the columns that are options. Raises UserError for a metric that no run has.
    """
    runs = load(runs)
    names = default_metrics(runs) if metrics is None else list(dict.fromkeys(metrics))
    check_metrics(runs, names)
    configs = [flatten(run.config) for run in runs]
    differing = _differing_options([config for run, config in zip(runs, configs, strict=True) if run.config])
    shown = list(dict.fromkeys([*options, *differing]))
    for name in options:
        check_option(configs, name)
    rows = [_describe_run(run) for run in runs]
    measured = [_measure(run, names, at, goal) for run in runs]
    costs = [_describe_cost(run) for run in runs]
    # An option may have the name of another column, such as a metric "seed" of a hook.
    others = {name for columns in (*rows, *measured, *costs) for name in columns}
    columns = {f"config.{name}" if name in others else name: name for name in shown}
    records = [
        row | {column: config.get(name) for column, name in columns.items()} | values | cost
        for row, config, values, cost in zip(rows, configs, measured, costs, strict=True)
    ]
    frame = make_frame(records)
    frame.attrs["options"] = list(columns)
    return frame


def curves(runs: Paths, metric: str) -> pd.DataFrame:
    """Returns the curves of a metric in long form: a row for each run and each logged value.

    Columns: run; step; seconds, examples and flops up to the step (nan if they are unknown); value, which may not be
    finite. Raises UserError for a metric that no run has.
    """
    runs = load(runs)
    check_metrics(runs, [metric])
    parts = []
    for run in runs:
        steps, values, times = series(run, metric)
        batch_size, flops = _batch_size(run), last_start(run).get("flops_per_example")
        examples = steps * _number(batch_size)
        parts.append(
            pd.DataFrame(
                {
                    "run": run.name,
                    "step": steps,
                    "seconds": count_seconds(run, times),
                    "examples": examples,
                    "flops": examples * _number(flops),
                    "value": values,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def goal_of(metric: str) -> Goal:
    """Returns whether low or high values of a metric are better, by the words of the last part of its name.

    "min" for loss, bits, nats, nll, FID, KID, LPIPS, MSE, RMSE, MAE, l1, l2, error, distance, divergence, rank and seconds;
    "max" for all others: accuracies, PSNR, SSIM, …, and the perplexity of a codebook.
    """
    parts = [part for part in _base_name(metric).split("/") if part not in _INTERVAL]
    words = re.split(r"[^A-Za-z0-9]+", parts[-1].lower()) if parts else []
    return "min" if _LOW_IS_BETTER.intersection(words) else "max"


def column_of(metric: str, value: Literal["final", "best"] | int) -> str:
    """Returns the name of the column of a metric's final value, best value, or value at a step."""
    return metric if value == "final" else f"{metric} ({value if isinstance(value, str) else f'at {value}'})"


def series(run: Run, metric: str) -> tuple[np.ndarray, Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """Returns steps (int64), values and unix times of the rows that hold a number for the metric."""
    rows = [row for row in run.measurements if _is_number(row.get(metric))]
    steps = np.array([row["step"] for row in rows], np.int64)
    return steps, *(np.array([_number(row.get(name)) for row in rows], np.float64) for name in (metric, "time"))


def count_seconds(run: Run, times: Float[np.ndarray, "rows"]) -> Float[np.ndarray, "rows"]:
    """Converts unix times of rows of metrics to seconds of training.

    A run consists of sessions, one for each start in `environment.json`. A session counts from its start, after
    compilation, to the last of its rows that is still there: time between sessions does not count, nor do updates that were
    lost with a process and repeated. Evaluations and checkpoints count. nan if the starts of the run are not recorded.
    """
    starts = sorted(time for start in _starts(run) if math.isfinite(time := _number(start.get("time"))))
    rows = np.array([_number(row.get("time")) for row in run.history], np.float64)
    if not starts or not rows.size or not np.all(rows >= starts[0]):
        return np.full(len(times), np.nan)
    session = np.searchsorted(starts, rows, "right") - 1
    lengths = np.array([np.max(rows[session == i], initial=start) - start for i, start in enumerate(starts)])
    before = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    index = np.searchsorted(starts, times, "right") - 1
    return before[index] + times - np.array(starts)[index]


def flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested options to dotted names; lists become tuples."""
    return {name: _freeze(value) for name, value in options_lib.flatten(options).items()}


def same(a: Any, b: Any) -> bool:
    """Returns whether two options are equal: 1 and 1.0 are, 1 and True are not, nan and nan are."""
    return identity(a) == identity(b)


def identity(value: Any) -> str:
    """Returns a text that is the same for equal options alone."""
    if isinstance(value, tuple):
        return f"({', '.join(map(identity, value))})"
    return repr(float(value)) if _is_number(value) and abs(value) < 2**53 else repr(value)


def order(value: Any) -> tuple[int, float, str]:
    """Key to sort options or metrics by: numbers by value, then all others by text, and last what is missing."""
    if _is_number(value) and not math.isnan(value):
        return 0, float(value), ""
    is_missing = value is None or value != value
    return 2 if is_missing else 1, 0.0, str(value)


def load(runs: Paths) -> list[Run]:
    """Returns the runs of some paths; runs that were read stay as they are. Raises UserError for no paths."""
    if isinstance(runs, str | os.PathLike):
        return find_runs(runs)
    if not len(runs):
        raise UserError("no runs: name run directories, or folders of them")
    if all(isinstance(run, Run) for run in runs):
        return distinguish(list(runs))
    return find_runs([run.path if isinstance(run, Run) else run for run in runs])


def check_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raises UserError if runs have metrics, but none has one of these."""
    names = list_metrics(runs)
    for metric in metrics if names else ():
        if metric not in names:
            raise UserError(f"no run has a metric {metric!r}{_suggest(metric, names)}")


def check_option(configs: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raises UserError if no flattened config has an option."""
    names = list(dict.fromkeys(key for config in configs for key in config))
    if names and name not in names:
        raise UserError(f"no run has an option {name!r}{_suggest(name, names)}")


def list_metrics(runs: Sequence[Run]) -> list[str]:
    """Lists the names of the metrics of runs, in the order of their appearance."""
    names = dict.fromkeys(name for run in runs for row in run.measurements for name, x in row.items() if _is_number(x))
    return [name for name in names if name not in ("step", "time")]


def make_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Makes a frame of records with the same names: columns of numbers, and else of objects as they are.

    By itself pandas would make None to nan, and integers beside it to floats.
    """
    columns = {name: [record[name] for record in records] for name in records[0]}
    return pd.DataFrame(
        {name: pd.Series(x, dtype=None if all(map(_is_number, x)) else object) for name, x in columns.items()}
    )


def list_results(frame: pd.DataFrame) -> list[str]:
    """Lists the columns of metrics of a table: those between the options and the costs."""
    names = list(frame.columns)
    return [name for name in names[names.index("step") + 1 : names.index("seconds")] if name not in frame.attrs["options"]]


def _suggest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [x for x in names if name in x][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(sorted(names)[:20])}"


def default_metrics(runs: Sequence[Run]) -> list[str]:
    """Returns the metrics that a table shows: results of evaluations after training, the loss, and those in training."""
    evaluators = {str(name) for run in runs if isinstance(run.config.get("evals"), dict) for name in run.config["evals"]}
    results = {name for run in runs for row in run.evaluations for name in row}
    hidden = (*_COUNTS, *_INTERVAL)
    shown = [
        name
        for name in list_metrics(runs)
        if name == "loss"
        or ((name.split("/")[0] in evaluators or name in results) and _base_name(name).split("/")[-1] not in hidden)
    ]
    return sorted(shown, key=lambda name: name not in results)  # stable


def _base_name(metric: str) -> str:
    """Returns the name of a metric without the data of an evaluation after training."""
    return metric.partition(" on ")[0]


def _differing_options(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for config in configs for name in config})
    return [
        name
        for name in names
        if len({identity(config[name]) if name in config else _ABSENT for config in configs}) > 1
    ]


def _describe_run(run: Run) -> dict[str, Any]:
    return {"run": run.name, "status": run.status, "step": run.step}


def _measure(run: Run, names: Sequence[str], at: int | None, goal: Goal | None) -> dict[str, Any]:
    """Returns the columns of the metrics of a run."""
    columns: dict[str, Any] = {}
    for name in names:
        steps, values, _ = series(run, name)
        columns[name] = values[-1] if values.size else math.nan
        finite = np.flatnonzero(np.isfinite(values))
        best = finite[np.argmin(values[finite] * (1 if (goal or goal_of(name)) == "min" else -1))] if finite.size else None
        columns[column_of(name, "best")] = math.nan if best is None else values[best]
        columns[f"{name} (best step)"] = math.nan if best is None else int(steps[best])
        if at is not None:
            before = values[steps <= at]
            columns[column_of(name, at)] = before[-1] if before.size and run.step >= at else math.nan
    return columns


def _describe_cost(run: Run) -> dict[str, Any]:
    start = last_start(run)
    times = np.array([_number(row.get("time")) for row in run.history], np.float64)
    versions, parameters = mapping_of(start, "versions"), mapping_of(start, "parameters")
    medians = {}
    for name in ("examples_per_second", "mfu"):
        _, values, _ = series(run, name)
        medians[name] = float(np.median(values)) if values.size else math.nan
    return {
        "seconds": float(count_seconds(run, times[-1:])[0]) if times.size else math.nan,
        **medians,
        "peak_bytes": _number(start.get("peak_bytes")),
        "flops": run.step * _number(_batch_size(run)) * _number(start.get("flops_per_example")),
        "parameters": sum(_number(count) for count in parameters.values()) if parameters else math.nan,
        **{name: start.get(name) for name in ("device", "devices", "hosts")},
        "commit": commit_of(start),
        **{name: versions.get(name) for name in ("python", "jax", "jaxlib", "flax", "optax", "numpy", "multimodal-jax")},
        "error": run.error,
        "path": str(run.path),
    }


def _starts(run: Run) -> list[dict[str, Any]]:
    starts = run.environment.get("starts")
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def last_start(run: Run) -> dict[str, Any]:
    """Returns the environment of the last start of a run; {} if it is not recorded."""
    return (_starts(run) or [{}])[-1]


def mapping_of(start: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an object of the environment, such as "versions"; {} if it is not recorded."""
    return value if isinstance(value := start.get(name), dict) else {}


def commit_of(start: Mapping[str, Any]) -> str | None:
    """Returns the git commit of a start, with a "+" if there were uncommitted changes; None if it is unknown."""
    code = mapping_of(start, "code")
    return f"{code['commit']}{'+' * bool(code.get('dirty'))}" if code.get("commit") else None


def _batch_size(run: Run) -> Any:
    data = run.config.get("data")
    return data.get("batch_size") if isinstance(data, dict) else None


def _freeze(value: Any) -> Any:
    """Makes a JSON value hashable."""
    if isinstance(value, list | tuple):
        return tuple(map(_freeze, value))
    return repr(value) if isinstance(value, dict) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """Returns a number as a float, and nan for anything else."""
    return float(value) if _is_number(value) else math.nan
