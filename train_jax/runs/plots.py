"""Figures of runs: curves, a grid of two options, quality against cost. They are saved by `figure.savefig(file)`."""

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train_jax.errors import UserError
from train_jax.runs import tables
from train_jax.runs.summaries import summary
from train_jax.runs.tables import Goal, Paths

Cost = Literal["step", "seconds", "examples", "flops"]

_LABELS = {"step": "step", "seconds": "seconds of training", "examples": "examples", "flops": "FLOPs"}
_MOST_NAMES = 20  # in a legend, or beside points
_LONG_LABEL = 24  # characters of a label that would take too much of the width beside the axes


def plot_curves(runs: Paths, metric: str, *, by: Sequence[str] = (), x: Cost = "step") -> Figure:
    """Plots a metric over steps, seconds, examples or FLOPs: one line for each run.

    Args:
      runs: paths or runs, see `table`.
      metric: name of the metric.
      by: options; runs that share them have one colour, and a thick line for their mean at the steps (for x = "examples":
        the numbers of examples) of all of them.
      x: horizontal axis.

    Values that are not finite are gaps. A legend names up to 20 lines. Raises UserError if no run has the metric, or an
    option.
    """
    runs = tables.load(runs)
    curves = tables.curves(runs, metric)
    figure, axes = _make_figure()
    groups = _group(runs, by) if by else {run.name: [run.name] for run in runs}
    groups = {label: names for label, names in groups.items() if curves["run"].isin(names).any()}
    handles = []
    for names, colour in zip(groups.values(), _colours(len(groups)), strict=True):
        parts = [part for name in names if len(part := curves[curves["run"] == name])]
        for part in parts if len(parts) > 1 else ():
            axes.plot(part[x], _finite(part["value"]), color=colour, alpha=0.35, linewidth=0.8)
        if len(parts) > 1:
            # At equal examples for that axis: batches may differ. Seconds are averaged too: runs differ in them at a step.
            key = "examples" if x == "examples" else "step"
            parts = [part.drop_duplicates(key, keep="last").set_index(key, drop=False) for part in parts]
            common = sorted(set.intersection(*(set(part.index) for part in parts)))
            horizontal, vertical = (np.mean([part.loc[common, name] for part in parts], axis=0) for name in (x, "value"))
        else:
            horizontal, vertical = parts[0][x], parts[0]["value"]
        handles += axes.plot(horizontal, _finite(vertical), color=colour, linewidth=2 if by else 1.3)
    axes.set_xlabel(_LABELS[x])
    _set_text(axes.set_ylabel(metric))
    if 1 < len(handles) <= _MOST_NAMES:
        _add_legend(axes, handles, list(groups))
    return figure


def plot_grid(
    runs: Paths | pd.DataFrame,
    metric: str,
    x: str,
    y: str,
    *,
    value: Literal["final", "best"] | int = "final",
    goal: Goal | None = None,
) -> Figure:
    """Plots a metric as a heat map over two options: each cell is the mean over the runs with these two values.

    Args:
      runs, metric, value, goal: see `summary`, which makes the means. Cells without a finished run are blank.
      x, y: options of the columns and of the rows, such as "optim.lr".

    Raises UserError if no run has a value.
    """
    frame = summary(runs, metric, [y, x], value=value, goal=goal)
    frame = frame[frame["runs"] > 0]
    if frame.empty:
        raise UserError(f"no finished run has a value of {metric!r}")
    columns, rows = (sorted({tables.identity(v): v for v in frame[name]}.values(), key=tables.order) for name in (x, y))
    grid = np.full((len(rows), len(columns)), np.nan)
    places = [{tables.identity(v): i for i, v in enumerate(values)} for values in (rows, columns)]
    for row in frame.to_dict("records"):
        grid[tuple(place[tables.identity(row[name])] for place, name in zip(places, (y, x), strict=True))] = row["mean"]
    figure, axes = _make_figure()
    goal = goal or tables.goal_of(metric)
    image = axes.imshow(_finite(grid), cmap="viridis_r" if goal == "min" else "viridis", aspect="auto", origin="lower")
    for (i, j), mean in np.ndenumerate(grid):
        if not np.isnan(mean):
            red, green, blue, _ = image.cmap(image.norm(mean)) if np.isfinite(mean) else (1, 1, 1, 1)
            is_dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(j, i, f"{mean:.4g}", ha="center", va="center", color="white" if is_dark else "black")
    for axis, name, values in ((axes.xaxis, x, columns), (axes.yaxis, y, rows)):
        axis.set_ticks(range(len(values)), [str(v) for v in values])
        for label in axis.get_ticklabels():
            _set_text(label)
        _set_text(axis.set_label_text(name))
    axes.grid(False)
    _set_text(axes.set_title(tables.column_of(metric, value), fontsize="medium"))
    figure.colorbar(image)
    return figure


def plot_pareto(
    runs: Paths,
    metric: str,
    x: Cost = "seconds",
    *,
    by: Sequence[str] = (),
    value: Literal["final", "best"] = "final",
    goal: Goal | None = None,
) -> Figure:
    """Plots quality against cost, one point for each run, and the Pareto front: runs that no cheaper run matches.

    Args:
      runs, metric: see `plot_curves`.
      x: cost: seconds of training, FLOPs, examples or steps.
      by: options; runs that share them have one colour.
      value: the last finite value of each run at the cost of all its updates up to there, or the best value at the cost up
        to its step.
      goal: whether low or high values are better; None: by `goal_of`.

    Runs without a finite value or a known cost are left out. Raises UserError if none is left.
    """
    runs = tables.load(runs)
    goal = goal or tables.goal_of(metric)
    curves = tables.curves(runs, metric)
    curves = curves[np.isfinite(curves["value"]) & np.isfinite(curves[x])]
    points = {}
    for name, part in curves.groupby("run", sort=False):
        row = -1 if value == "final" else int(np.argmin(part["value"] * (1 if goal == "min" else -1)))
        points[name] = (float(part[x].iloc[row]), float(part["value"].iloc[row]))
    if not points:
        raise UserError(f"no run has both a finite {metric!r} and {_LABELS[x]}, which older versions did not record")
    figure, axes = _make_figure()
    groups = _group(runs, by) if by else {"": list(points)}
    groups = {label: [name for name in names if name in points] for label, names in groups.items()}
    handles = [
        axes.scatter(*zip(*(points[name] for name in names), strict=True), color=colour, zorder=3)
        for names, colour in zip(groups.values(), _colours(len(groups)), strict=True)
        if names
    ]
    names, both = list(points), np.array(list(points.values()))
    front = both[find_pareto_front(both[:, 0], both[:, 1], goal)]
    front = front[np.argsort(front[:, 0])]
    axes.step(front[:, 0], front[:, 1], where="post", color="0.5", linewidth=1, zorder=2)
    for name, point in zip(names, both, strict=True) if len(names) <= _MOST_NAMES and not by else ():
        _set_text(axes.annotate(name, point, (4, 4), textcoords="offset points", fontsize="x-small"))
    axes.set_xlabel(_LABELS[x])
    _set_text(axes.set_ylabel(tables.column_of(metric, value)))
    if by and len(handles) <= _MOST_NAMES:
        _add_legend(axes, handles, [label for label, names in groups.items() if names])
    return figure


def find_pareto_front(
    costs: Float[np.ndarray, "points"], values: Float[np.ndarray, "points"], goal: Goal
) -> Bool[np.ndarray, "points"]:
    """Returns which points are not dominated: no other point is at least as good in both, and better in one."""
    losses = values if goal == "min" else -values
    no_worse = (costs[:, None] <= costs[None]) & (losses[:, None] <= losses[None])
    better = (costs[:, None] < costs[None]) | (losses[:, None] < losses[None])
    return ~np.any(no_worse & better, axis=0)


def _group(runs: Sequence[tables.Run], by: Sequence[str]) -> dict[str, list[str]]:
    """Groups names of runs by options, under labels such as "optim.lr = 0.1"; sorted by the options."""
    configs = {run.name: tables.flatten(run.config) for run in runs}
    for option in by:
        tables.check_option(list(configs.values()), option)
    groups: dict[str, list[str]] = {}
    for name in sorted(configs, key=lambda name: [tables.order(configs[name].get(option)) for option in by]):
        label = ", ".join(f"{option} = {configs[name].get(option)}" for option in by)
        groups.setdefault(label, []).append(name)
    return groups


def _colours(count: int) -> Sequence:
    """Returns distinct colours for up to ten, and else colours along a scale."""
    if count <= 10:
        return mpl.color_sequences["tab10"][:count]
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.95, count)))


def _make_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _add_legend(axes: Axes, handles: Sequence, labels: Sequence[str]) -> None:
    # Matplotlib hides labels that begin with an underscore.
    texts = [f" {label}" for label in labels]
    # Beside the axes, or below them if labels are long.
    anchor = (1, 1) if max(map(len, labels)) <= _LONG_LABEL else (0, -0.14)
    legend = axes.legend(handles, texts, loc="upper left", bbox_to_anchor=anchor, fontsize="x-small", frameon=False)
    for text in legend.get_texts():
        _set_text(text)


def _set_text(text: mpl.text.Text) -> None:
    """Shows a text as it is: names may contain "$", which would begin a formula."""
    text.set_parse_math(False)


def _finite(values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)
