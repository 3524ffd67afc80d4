"""Tabulates runs: options that differ, metrics, time, speed, memory, versions; also of unfinished and damaged runs.

    train-jax runs runs/lr
    train-jax runs runs/lr --metric test/top1 --at 1000 --sort test/top1
    train-jax runs runs/lr --metric test/top1 --by optim.lr --baseline optim.lr=0.001
    train-jax runs runs/lr 'runs/old-*' --metric loss --html runs.html
    train-jax runs runs/a runs/b --compare

A path is a run directory, a folder of run directories at any depth, a glob, or a file of results of `train-jax evaluate` or
`clip-jax evaluate`, of which each model is a row. --by prints, for each value of some options,
the mean over seeds with its 95 % bootstrap interval, and with --baseline the paired differences from one of the values.
--csv prints one row a run after a header, with all columns; --md prints Markdown.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from train_jax.arguments import check_outputs, expand_home
from train_jax.command import run_command
from train_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Runs `train-jax runs`. Returns the exit code: 0, or 2 for a user error."""
    parser = argparse.ArgumentParser(
        "train-jax runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="run directory, folder of run directories, glob, or results.jsonl"
    )
    parser.add_argument(
        "--metric", action="append", metavar="NAME", help="metric, once for each (default: loss and results of evaluators)"
    )
    parser.add_argument("--at", type=int, metavar="STEP", help="show metrics at a step, too; with --by: instead of the last")
    parser.add_argument("--best", action="store_true", help="with --by: the best value of each run instead of the last")
    parser.add_argument("--goal", choices=("min", "max"), help="better values of a metric (default: by its name)")
    parser.add_argument("--by", metavar="OPTIONS", help="summarise a metric by options: optim.lr,model.width")
    parser.add_argument(
        "--baseline", action="append", metavar="OPTION=VALUE", help="with --by: show differences from the runs of this value"
    )
    parser.add_argument("--sort", metavar="COLUMN", help="sort by an option, a metric (best first) or another column")
    parser.add_argument("--html", metavar="FILE", help="write a page with table, curves and samples")
    parser.add_argument("--compare", action="store_true", help="print how two runs differ: config, code, data, curves")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print comma-separated values")
    output.add_argument("--md", action="store_true", help="print Markdown")
    parser.set_defaults(run=_run, command="runs")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return run_command("train-jax", parser.parse_args(expand_home(argv)))


def _run(arguments: argparse.Namespace) -> int:
    from train_jax.runs import read, tables

    check_outputs(html=arguments.html)
    for option, is_set in (("--baseline", arguments.baseline), ("--best", arguments.best)):
        if is_set and not arguments.by:
            raise UserError(f"{option} without --by, the options that it groups runs by")
    if arguments.by and len(arguments.metric or ()) > 1:
        raise UserError(f"--by summarises one metric, and --metric names {len(arguments.metric)}: leave the others out")
    if arguments.best and arguments.at is not None:
        raise UserError(f"--best and --at={arguments.at}: choose one")
    runs = read.find_runs(arguments.paths)
    if all(run.status == "empty" for run in runs):
        raise UserError(f"no run in {', '.join(arguments.paths)}: {runs[0].error}")
    if arguments.compare:
        return _compare(arguments, runs)
    by = [name.strip() for name in (arguments.by or "").split(",") if name.strip()]
    frame = tables.table(runs, arguments.metric, at=arguments.at, goal=arguments.goal, options=by)
    metrics = arguments.metric or tables.default_metrics(runs)
    if arguments.sort:
        frame = _sort(frame, arguments.sort, arguments.goal)
    summary = _summarise(arguments, frame, metrics, by) if by else None
    if arguments.html:
        _write_page(arguments.html, runs, frame, metrics, summary, by)
    _print(arguments, frame, summary)
    return 0


def _compare(arguments: argparse.Namespace, runs: Sequence[Any]) -> int:
    from train_jax.runs.comparison import compare

    if len(runs) != 2:
        raise UserError(f"--compare takes two runs, and these paths hold {len(runs)}")
    print(compare(*runs))
    return 0


def _sort(frame, column: str, goal: str | None):
    """Sorts a table: metrics with the best first, all other columns ascending; missing values last."""
    from train_jax.runs import tables

    if column not in frame.columns:
        raise UserError(f"--sort {column!r} is no column of the table; it has {', '.join(frame.columns)}")
    is_metric = column in tables.list_results(frame) and not column.endswith(" (best step)")
    direction = goal or tables.goal_of(column.partition(" (")[0])
    keys = frame[column].map(tables.order)
    if is_metric and direction == "max":
        keys = frame[column].map(lambda value: tables.order(-value))
    return frame.iloc[sorted(range(len(frame)), key=lambda i: keys.iloc[i])]


def _summarise(arguments: argparse.Namespace, frame, metrics: Sequence[str], by: Sequence[str]):
    from train_jax.runs.summaries import summary

    if not metrics:
        raise UserError("--by: the runs have no metrics yet")
    value = "best" if arguments.best else "final" if arguments.at is None else arguments.at
    return summary(frame, metrics[0], by, dict(map(_parse_baseline, arguments.baseline or ())), value=value)


def _parse_baseline(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--baseline {text!r} must be OPTION=VALUE, such as optim.lr=0.001")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _write_page(file: str, runs, frame, metrics: Sequence[str], summary, by: Sequence[str]) -> None:
    from pathlib import Path

    from train_jax.paths import write_atomically
    from train_jax.runs.report import make_report

    content = make_report(runs, frame, metrics, summary, by).encode()
    write_atomically(Path(file), lambda stream: stream.write(content))
    print(f"wrote {file}", file=sys.stderr)


def _print(arguments: argparse.Namespace, frame, summary) -> None:
    """Prints the summary, if there is one, or the table."""
    from train_jax.runs import text

    if arguments.csv:
        print((frame if summary is None else summary).to_csv(index=False), end="")
    elif arguments.md:
        print(text.format_markdown(frame if summary is None else summary))
    elif summary is not None:
        print(text.format_summary(summary))
    else:
        print(text.format_table(frame, text.choose_width()))
