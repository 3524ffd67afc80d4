"""Comparison of two runs: config, code, data and curves."""

import dataclasses
import os
from typing import Any

import numpy as np
import pandas as pd

from train_jax.runs import tables
from train_jax.runs.read import Run, read_run
from train_jax.runs.text import align, format_value, printable

_CLOCK = ("steps_per_second", "examples_per_second", "mfu")  # metrics that differ between equal runs
_ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Differences of two runs. `str` formats them as text.

    Attributes:
      a, b: the runs.
      config: option -> its values in both, "absent" where a config lacks it. Without the options of the data.
      code: "commit", "device", … and the name of each package -> its values in both, of the last start. Versions that were
        not recorded are None.
      uncommitted: names of the runs whose clone had changes that were not committed, or whose commit is unknown: their code
        may differ from the other's even if the commits are equal.
      data: options of the data, the number of records, and the hashes of artifacts such as `tokenizer.json`, as in `config`.
      curves: frame with a row for each metric of both runs that differs at any step of both: `step`, the last step of both;
        `a` and `b`, the values there; `first`, the first step where they differ; `largest`, the largest absolute
        difference, nan if a value is. Metrics of speed are left out.
      equal: number of metrics that are equal at all steps of both.
      separate: names of the metrics of which the runs share no step.
    """

    a: Run
    b: Run
    config: dict[str, tuple[Any, Any]]
    code: dict[str, tuple[Any, Any]]
    uncommitted: tuple[str, ...]
    data: dict[str, tuple[Any, Any]]
    curves: pd.DataFrame
    equal: int
    separate: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for letter, run in zip("ab", (self.a, self.b), strict=True):
            lines.append(f"{letter}: {run.name}, {run.status} at step {run.step}{f' ({run.error})' if run.error else ''}")
        for name, differences in (("config", self.config), ("code", self.code), ("data", self.data)):
            lines += ["", f"{name}: {'no difference' if not differences else ''}".rstrip()]
            rows = [[key, *map(_format, pair)] for key, pair in differences.items()]
            lines += align([["", "a", "b"], *rows]) if rows else []
            if name == "code" and self.uncommitted:
                lines.append(f"changes that were not committed, or an unknown commit: {', '.join(self.uncommitted)}")
        lines += ["", f"curves: {self.equal} metrics are equal at all common steps, {len(self.curves)} differ"]
        header = ["metric", "first differs", "largest difference", "last step", "a", "b"]
        names = ("metric", "first", "largest", "step", "a", "b")
        rows = [[format_value(row[name]) for name in names] for row in self.curves.to_dict("records")]
        lines += align([header, *rows]) if rows else []
        if self.separate:
            lines.append(f"without a common step: {', '.join(self.separate)}")
        return "\n".join(printable(line) for line in lines)


def compare(a: str | os.PathLike | Run, b: str | os.PathLike | Run) -> Comparison:
    """Compares two runs in config, code, data and curves. Runs may be unfinished or damaged."""
    runs = [run if isinstance(run, Run) else read_run(run) for run in (a, b)]
    if runs[0].name == runs[1].name:
        runs = [dataclasses.replace(run, name=str(run.path)) for run in runs]
    configs = [tables.flatten(run.config) for run in runs]
    options = _differences(*configs, absent=_ABSENT)
    starts = [tables.last_start(run) for run in runs]
    codes = [_describe_code(start) for start in starts]
    hashes = [run.artifacts for run in runs]
    counts = _differences(*({"records": start.get("records")} for start in starts), absent=None)
    artifacts = _differences(*(tables.flatten(x) for x in hashes), absent=_ABSENT)
    curves, equal, separate = _compare_curves(*runs)
    return Comparison(
        a=runs[0],
        b=runs[1],
        config={name: pair for name, pair in options.items() if not name.startswith("data.")},
        code=_differences(*codes, absent=None),
        uncommitted=tuple(
            run.name
            for run, code in zip(runs, codes, strict=True)
            if code.get("commit") is None or code["commit"].endswith("+")
        ),
        data={name: pair for name, pair in options.items() if name.startswith("data.")} | counts | artifacts,
        curves=curves,
        equal=equal,
        separate=tuple(separate),
    )


def _format(value: Any) -> str:
    return "not recorded" if value is None else format_value(value)


def _describe_code(start: dict[str, Any]) -> dict[str, Any]:
    hardware = {name: start.get(name) for name in ("device", "devices", "hosts")}
    return {"commit": tables.commit_of(start)} | hardware | tables.mapping_of(start, "versions")


def _differences(a: dict[str, Any], b: dict[str, Any], absent: Any) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (a.get(name, absent), b.get(name, absent)) for name in sorted({*a, *b})}
    return {name: pair for name, pair in pairs.items() if not tables.same(*pair)}


def _compare_curves(a: Run, b: Run) -> tuple[pd.DataFrame, int, list[str]]:
    rows, equal, separate = [], 0, []
    for name in tables.list_metrics([a, b]):
        if name in _CLOCK:
            continue
        by_step = [dict(zip(*tables.series(run, name)[:2], strict=True)) for run in (a, b)]
        steps = sorted(by_step[0].keys() & by_step[1].keys())
        if not steps:
            separate.append(name)
            continue
        values = np.array([[values[step] for step in steps] for values in by_step])
        differs = ~((values[0] == values[1]) | np.isnan(values).all(axis=0))
        if not differs.any():
            equal += 1
            continue
        with np.errstate(invalid="ignore"):  # inf - inf
            largest = np.max(np.abs(values[0] - values[1]))
        rows.append(
            {
                "metric": name,
                "step": int(steps[-1]),
                "a": values[0, -1],
                "b": values[1, -1],
                "first": int(steps[int(np.argmax(differs))]),
                "largest": largest,
            }
        )
    return pd.DataFrame(rows, columns=["metric", "step", "a", "b", "first", "largest"]), equal, separate
