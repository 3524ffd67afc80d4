"""Summaries over seeds: means, bootstrap intervals, paired differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from train_jax.errors import UserError
from train_jax.runs import tables
from train_jax.runs.tables import Paths, column_of, identity

CONFIDENCE = 0.95
_RESAMPLES = 9999


def summary(
    runs: Paths | pd.DataFrame,
    metric: str,
    by: Sequence[str],
    baseline: Mapping[str, Any] | None = None,
    *,
    value: Literal["final", "best"] | int = "final",
    goal: tables.Goal | None = None,
) -> pd.DataFrame:
    """Summarises a metric of runs that share the options `by`, with seeds as replicates.

    Args:
      runs: paths or runs (see `table`), or a frame made by `table`.
      metric: name of the metric.
      by: options that make the groups, such as ["optim.lr"].
      baseline: option -> value, of some options of `by`: adds the differences from the groups with these values.
      value: the final value of each run, its best one, or the one at a step.
      goal: whether low or high values are better, for the best value; None: by `goal_of`. A frame has its own.

    Columns: the options `by`; `runs`, number of runs of the group that count; `left_out`, number of the others, whose value
    is nan or which are not finished (for a value at a step they need not be); `seeds`, number of distinct seeds; `mean`;
    `low` and `high`, its interval. If other options differ too, the values of a seed are averaged first: each seed counts
    once.

    With a baseline, `pairs`, `difference`, `difference_low` and `difference_high`: each run is compared with the run of the
    baseline that has the same seed and agrees with it in all options that differ between any of the runs, except those of
    the baseline. Runs without such a partner do not count. The rows of the baseline itself have nan.

    Intervals are `bootstrap_interval` over seeds; nan for a single seed. `frame.attrs["metric"]` is the column that was
    summarised. Raises UserError for options or metrics that no run
    has, and for a baseline that no run has.
    """
    if isinstance(runs, pd.DataFrame):
        frame = runs
    else:
        at = value if isinstance(value, int) else None
        frame = tables.table(runs, [metric], at=at, goal=goal, options=list(by))
    if "options" not in frame.attrs:
        raise UserError("the frame does not tell which of its columns are options; make it with train_jax.runs.table")
    column = column_of(metric, value)
    for name in (*by, column):
        if name not in frame.columns:
            raise UserError(f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    baseline = tables.flatten(baseline or {})
    for name in baseline:
        if name not in by:
            raise UserError(f"the option {name!r} of the baseline is not one of by = {', '.join(by)}")
    rows = frame.to_dict("records")
    known = [row for row in rows if isinstance(value, int) or row["status"] == "finished"]
    known = [row for row in known if not math.isnan(row[column])]
    is_baseline = [all(tables.same(row[name], x) for name, x in baseline.items()) for row in known] if baseline else []
    if baseline and not any(is_baseline):
        wanted = ", ".join(f"{name} = {x!r}" for name, x in baseline.items())
        raise UserError(f"no run with a value of {column!r} is the baseline, {wanted}")
    paired = [name for name in dict.fromkeys([*frame.attrs["options"], *by]) if name not in baseline]
    partners = _average(
        [row for row, is_base in zip(known, is_baseline, strict=True) if is_base] if baseline else [], paired, column
    )
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(identity(row[name]) for name in by), []).append(row)
    known_ids = {id(row) for row in known}
    results = []
    for group in sorted(groups.values(), key=lambda group: [tables.order(group[0][name]) for name in by]):
        members = [row for row in group if id(row) in known_ids]
        result = {name: group[0][name] for name in by}
        result |= {"runs": len(members), "left_out": len(group) - len(members)}
        result |= _estimate(_average(members, ["seed"] if "seed" in frame else [], column))
        if baseline:
            is_own = all(tables.same(group[0][name], x) for name, x in baseline.items())
            values = {} if is_own else _average(members, paired, column)
            differences = {key: x - partners[key] for key, x in values.items() if key in partners}
            seed = paired.index("seed") if "seed" in paired else None
            by_seed: dict[Any, list[float]] = {}
            for key, x in differences.items():
                by_seed.setdefault(None if seed is None else key[seed], []).append(x)
            estimate = _estimate({key: float(np.mean(x)) for key, x in by_seed.items()})
            result |= {"pairs": len(differences), "difference": estimate["mean"]}
            result |= {f"difference_{name}": estimate[name] for name in ("low", "high")}
        results.append(result)
    summarised = tables.make_frame(results)
    summarised.attrs["metric"] = column
    return summarised


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13).

    From 9,999 resamples with a fixed seed. nan for less than two values, and if a value is not finite. The percentile
    method is defined for two values and more, unlike BCa, whose acceleration is 0 / 0 for equal values and which has no
    basis for two; with few values the interval is too narrow (two values: it is the range of both).
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return math.nan, math.nan
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _average(rows: Sequence[Mapping[str, Any]], names: Sequence[str], column: str) -> dict[tuple[str, ...], float]:
    """Averages a column over the rows that agree in some options."""
    values: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        values.setdefault(tuple(identity(row[name]) for name in names), []).append(float(row[column]))
    return {key: float(np.mean(x)) for key, x in values.items()}


def _estimate(values: Mapping[Any, float]) -> dict[str, Any]:
    """Returns number of seeds, mean and interval of a value for each seed."""
    with np.errstate(invalid="ignore"):  # inf - inf of diverged runs
        mean = float(np.mean(list(values.values()))) if values else math.nan
    low, high = bootstrap_interval(list(values.values()))
    return {"seeds": len(values), "mean": mean, "low": low, "high": high}
