"""Evaluates the line between weights, and saves a point of it (WiSE-FT, arXiv 2109.01903; soups, arXiv 2203.05482).

    train-jax blend runs/tuned --alpha=0:1:0.1
    train-jax blend runs/base runs/tuned --evals=old,new --alpha=0:1:0.1 --png=line.png
    train-jax blend runs/base runs/tuned --maximize=new/top1 --keep=old/top1:0.02 --save=runs/blend
    train-jax blend runs/base runs/a runs/b runs/c --alpha=1 --save=runs/soup

A point is (1 - alpha) A + alpha B. A is the first model, a run directory or public weights; of a single run, the weights
that it started from (config.pretrained). B is the last run or, of several, their mean. Fine-tuned weights forget what their
data lack; on the line to where they came from there are often points that know both. Evaluators and their data are those of
the last run's config, chosen and changed as by `train-jax evaluate`, and results are lines of JSON in the same file.
--save writes a run directory of one point: of the only alpha, of --at, or of the largest --maximize (or smallest --minimize)
among the points that lose at most so much of each --keep, compared with A; with --minimize, that gain at most so much.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from train_jax import arguments, config_file, paths, program_cache, run_directory, sharding, trained_weights
from train_jax.command import exit_code
from train_jax.environment import record_code
from train_jax.errors import ConfigError, UserError
from train_jax.evaluation.command import evaluate_weights
from train_jax.evaluation.evaluators import Evaluations
from train_jax.evaluation.opened_model import OpenedModel, open_model
from train_jax.evaluation.results import FILE, EvaluationFile
from train_jax.paths import AnyPath
from train_jax.task import Task
from train_jax.weights import hub, layout

Weights = tuple[Any, Any]  # params and extra, NumPy arrays


def main(argv: list[str]) -> int:
    """Runs `train-jax blend`. Returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        "train-jax blend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="A, and one or more runs; or one run")
    parser.add_argument("--alpha", default="0:1:0.1", metavar="A,…", help="points, or FROM:TO:STEP (default: 0:1:0.1)")
    parser.add_argument("--evals", metavar="NAME,…", help="evaluators of the config, or types of evaluators (default: all)")
    parser.add_argument("--data", metavar="SOURCE", help="data source of the evaluators (default: those of the config)")
    parser.add_argument("--split", help="split of the source (default: those of the config)")
    parser.add_argument("--out", metavar="FILE", help=f"file of results (default: {FILE} in the last run directory)")
    parser.add_argument("--png", metavar="FILE", help="plot of the metrics against alpha")
    parser.add_argument("--save", metavar="DIR", help="run directory to write, of one point")
    parser.add_argument("--at", type=float, metavar="ALPHA", help="point to save")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--maximize", metavar="NAME/METRIC", help="metric of the point to save, such as new/top1")
    goal.add_argument("--minimize", metavar="NAME/METRIC", help="the same, such as new/bits_per_code")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME/METRIC:LOSS", help="largest loss of another metric, against A"
    )
    options, words = config_file.parse_arguments(parser, argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return exit_code("train-jax blend", lambda: _run(options, words), "the same command goes on after the last result")


def _run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluates the points and saves the chosen one, after all arguments were checked."""
    arguments.check_outputs(out=options.out, png=options.png)
    png = options.png and arguments.png(options.png, "the plot", "--png")
    alphas = parse_alphas(options.alpha)
    keep = dict(map(_parse_keep, options.keep))
    if keep and 0 not in alphas:
        raise UserError("--keep compares with A: let --alpha contain 0")
    if options.save is not None:
        _check_saving(options, alphas)
    elif options.at is not None or options.maximize or options.minimize or keep:
        raise UserError("--at, --maximize, --minimize and --keep choose the point to save: add --save=DIR")
    metric, goal = options.maximize or options.minimize, "minimize" if options.minimize else "maximize"
    evaluators = None if options.evals is None else arguments.listed(options.evals, "an evaluator", "--evals")
    choices = {"evaluators": evaluators, "source": options.data, "split": options.split, "overrides": overrides}
    *first, last = options.models
    model = open_model(last, **choices)
    if model.directory is None:
        raise UserError(f"{last} is no run directory, whose config names model and data: name the run last")
    out = paths.absolute(options.out) if options.out else model.directory / FILE
    file = EvaluationFile(out)
    program_cache.enable(jax.devices()[0].platform)
    line = Line(model, first[0] if first else None, first[1:])
    points = evaluate_points(line, alphas, file)
    if png:
        plot(points, png)
    if options.save is not None:
        alpha = options.at if options.at is not None else alphas[0]
        if metric is not None:
            alpha = choose(points, metric, keep, goal)
        line.save(alpha, options.save)
        print(f"alpha {alpha:g}: {options.save}")


def parse_alphas(text: str) -> list[float]:
    """Parses `0,0.5,1` or `FROM:TO:STEP`, whose last point is TO. Raises UserError for anything else."""
    try:
        if ":" not in text:
            alphas = [float(word) for word in text.split(",")]
            if not np.isfinite(alphas).all():
                raise ValueError
            return alphas
        start, stop, step = map(float, text.split(":"))
        count = round((stop - start) / step)
        if count < 0 or abs(start + count * step - stop) > 1e-6:
            raise ValueError
        return [round(start + i * step, 6) for i in range(count)] + [stop]
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--alpha={text}: write numbers as 0,0.5,1, or FROM:TO:STEP as 0:1:0.1") from error


def _parse_keep(text: str) -> tuple[str, float]:
    name, _, loss = text.rpartition(":")
    try:
        return name, float(loss)
    except ValueError as error:
        raise UserError(f"--keep={text}: write NAME/METRIC:LOSS, such as old/top1:0.02") from error


def _check_saving(options: argparse.Namespace, alphas: Sequence[float]) -> None:
    directory = paths.run_directory(options.save)
    if (directory / "config.json").exists():
        raise UserError(f"--save={options.save} is a run directory already: name another")
    arguments.check_folder(str(directory), "--save")
    metric = options.maximize or options.minimize
    if options.at is not None and not np.isfinite(options.at):
        raise UserError(f"--at={options.at}: it must be a number")
    if options.at is not None and metric is not None:
        raise UserError("--at and --maximize or --minimize both choose the point to save: leave one out")
    if options.at is None and metric is None and len(alphas) > 1:
        raise UserError(f"--save={options.save}: choose one of {len(alphas)} points by --at=ALPHA or --maximize=NAME/METRIC")


class Line:
    """The line between two ends, weights of one model on the host, with evaluators of its points.

    Args:
      model: the last run.
      base: run directory or public weights of A; None: those that the run started from.
      others: further runs, which are averaged with the last one.

    Raises ConfigError if the ends are not of one model, LoadError if they cannot be read.
    """

    def __init__(self, model: OpenedModel, base: str | None, others: Sequence[str]):
        self._model, self._mesh = model, sharding.make_mesh(model.config.mesh)
        base = base or _read_start(model)
        with jax.set_mesh(self._mesh):
            self._task = model.make_task()
            self._evaluations = Evaluations(model.config, self._task, self._mesh)
            self.start, self.end, self._step = _load_ends(model, self._task, base, others)

    def evaluate(self, alpha: float, file: EvaluationFile) -> dict[str, float]:
        """Evaluates the point `alpha`, or reads the results of an equal one. Returns metrics by `evaluator/metric`."""
        point = dataclasses.replace(self._model, name=f"{self._model.name} at alpha {alpha:g}")
        weights = interpolate(self.start, self.end, alpha)
        with jax.set_mesh(self._mesh):
            rows = list(evaluate_weights(point, self._task, self._evaluations, self._mesh, *weights, None, file))
        return {f"{row['evaluator']}/{name}": value for row, _ in rows for name, value in row["metrics"].items()}

    def save(self, alpha: float, directory: str | os.PathLike) -> None:
        """Writes the run directory of a point: config and files of the last run, and the weights as the only checkpoint."""
        source, target = self._model.directory, paths.run_directory(directory)
        trained_weights.write_weights(target / "checkpoints", self._step, *interpolate(self.start, self.end, alpha))
        record_code(target, self._step)
        for name in ("artifacts.json", *self._task.artifacts, "config.json"):  # the last makes the folder a run directory
            paths.replace_file(target / name, (source / name).read_bytes())


def _load_ends(
    model: OpenedModel, task: Task, base: str, others: Sequence[str]
) -> tuple[Weights, Weights, int | None]:
    """Loads the weights of A and B, and the step of the last run."""
    ends = [_load(dataclasses.replace(model, name=name, directory=paths.absolute(name)), task) for name in others]
    *last, step = model.load_weights(task)
    names = [*others, model.name]
    end = _average([*ends, tuple(last)], names)
    directory = None if hub.is_name(base) else paths.absolute(base)
    if directory is not None and run_directory.read_config(directory) is not None:
        opened = dataclasses.replace(model, name=base, directory=directory, step=None)
    elif "pretrained" in model.config:
        config = model.config.copy_and_resolve_references()
        config.pretrained = base
        opened = dataclasses.replace(model, name=base, config=config, directory=None)
    else:
        raise ConfigError(f"{base} is no run directory, and {model.config.task} does not start from public weights")
    # What A has not, such as a discriminator, is the last run's.
    start = tuple({**last, **first} for first, last in zip(_load(opened, task), end, strict=True))
    _check_same_model(start, end, base, model.name)
    return start, end, step


def _read_start(model: OpenedModel) -> str:
    """Returns the weights that a run started from. Raises UserError if it started from random ones."""
    start = (run_directory.read_config(model.directory) or {}).get("pretrained")
    if not start:
        raise UserError(f"{model.name} did not start from weights (config.pretrained): name A before it")
    return start


def _load(opened: OpenedModel, task: Task) -> Weights:
    own = opened.make_task()
    if own.artifacts != task.artifacts:
        names = ", ".join(sorted({*own.artifacts, *task.artifacts}))
        raise ConfigError(f"{opened.name} has other files than the last run ({names}): they must be equal to be blended")
    params, extra, *_ = opened.load_weights(own)
    compute = opened.config.compute
    if "scan" in compute:  # the ends may differ in whether blocks are stacked
        params = layout.unflatten(layout.flatten(params), compute.scan)
    return params, extra


def _average(ends: Sequence[Weights], names: Sequence[str]) -> Weights:
    for end, name in zip(ends, names, strict=True):
        _check_same_model(end, ends[-1], name, names[-1])
    return jax.tree.map(lambda *xs: np.mean(np.stack(xs), axis=0, dtype=xs[0].dtype) if _is_float(xs[0]) else xs[-1], *ends)


def _is_float(x) -> bool:
    return np.issubdtype(np.asarray(x).dtype, np.floating)


def _check_same_model(first: Weights, second: Weights, name: str, other: str) -> None:
    shapes, other_shapes = (
        {sharding.path_name(path): np.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(weights)}
        for weights in (first, second)
    )
    different = sorted(path for path in {*shapes, *other_shapes} if shapes.get(path) != other_shapes.get(path))
    if different:
        path = different[0]
        stated = " and ".join(f"{x.get(path, 'missing')} in {y}" for x, y in ((shapes, name), (other_shapes, other)))
        raise ConfigError(f"{name} and {other} are different models: {path} is {stated}")


def interpolate(start: Weights, end: Weights, alpha: float) -> Weights:
    """Computes `(1 - alpha) * start + alpha * end`; of arrays that are not floats, those of the nearer end."""

    def mix(a, b):
        if not _is_float(a):
            return b if alpha >= 0.5 else a
        return ((1 - alpha) * np.asarray(a) + alpha * np.asarray(b)).astype(np.asarray(a).dtype)

    return jax.tree.map(mix, start, end)


def choose(
    points: Mapping[float, Mapping[str, float]], metric: str, keep: Mapping[str, float], goal: str = "maximize"
) -> float:
    """Returns the alpha with the largest metric, among those that lose at most `keep` of other metrics against alpha 0.

    With the goal "minimize", the smallest metric, and other metrics may grow by at most `keep`.
    Raises UserError for an unknown metric, or if no point keeps them.
    """
    known, sign = next(iter(points.values())), 1 if goal == "maximize" else -1
    for name in (metric, *keep):
        if name not in known:
            raise UserError(f"there is no metric {name!r}: the evaluators give {', '.join(known)}")
    allowed = [
        alpha
        for alpha, metrics in points.items()
        if not np.isnan(metrics[metric])
        and all(sign * (points[0][name] - metrics[name]) <= loss for name, loss in keep.items())
    ]
    if not allowed:
        listed = " and ".join(f"{loss:g} of {name}" for name, loss in keep.items())
        raise UserError(f"at no point {metric} is a number{f' and at most {listed} is lost' if keep else ''}: allow more")
    return max(allowed, key=lambda alpha: sign * points[alpha][metric])


def evaluate_points(line: Line, alphas: Sequence[float], file: EvaluationFile) -> dict[float, dict[str, float]]:
    """Evaluates points of a line and prints them as rows of a table. Returns `alpha -> metrics`."""
    points = {}
    for alpha in alphas:
        points[alpha] = line.evaluate(alpha, file)
        _print_point(alpha, points[alpha], is_first=len(points) == 1)
    return points


def _print_point(alpha: float, metrics: Mapping[str, float], is_first: bool) -> None:
    """Prints a row of the table, and before the first row its head."""
    if is_first:
        print("alpha  " + "  ".join(metrics))
    print(f"{alpha:5.2f}  " + "  ".join(f"{value:{len(name)}.4g}" for name, value in metrics.items()), flush=True)


def plot(points: Mapping[float, Mapping[str, float]], png: AnyPath) -> None:
    """Plots all metrics against alpha."""
    import matplotlib.figure  # lazy import: plots are rare
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = list(next(iter(points.values())))
    figure = matplotlib.figure.Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in names:
        axes.plot(list(points), [metrics[name] for metrics in points.values()], "o-", markersize=3, label=name)
    axes.set_xlabel("alpha")
    axes.legend(fontsize=8)
    figure.savefig(png)
