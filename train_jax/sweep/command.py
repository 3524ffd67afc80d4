"""Runs a sweep: all combinations of some options and seeds, each in a run directory of its own below one folder.

    train-jax sweep --config=clip/digits --workdir=runs/lr --grid optim.lr=1e-3,3e-4 --grid model.loss=softmax,sigmoid
    train-jax sweep --config=clip/digits --workdir=runs/lr --grid optim.lr=1e-3,3e-4 --seeds 3 --together
    train-jax sweep --config=clip/digits --workdir=runs/lr --grid optim.lr=1e-3,3e-4 --where 'optim.lr < 5e-4' --dry-run
    train-jax sweep --config=clip/digits --workdir=runs/best --range optim.lr=1e-4:1e-2:log --search optuna --trials 40 \\
        --maximize test/top1

A config file may define the points itself, by a function `sweep()` that yields dicts of options by dotted name; --grid and
--seeds are combined with them. --config.NAME=VALUE sets an option of all runs. All points are checked before the first run
starts. Repeating the command skips finished runs, resumes interrupted ones and starts the others; failed runs are listed
with their error and left alone, without --retry-failed. `train-jax runs WORKDIR` compares the runs.

Runs are processes, --jobs at a time, which share the GPUs; with --together one program trains all runs that differ only in
numbers (rates, weights of losses, lengths of schedules, seeds); with --launcher=slurm they are an array of Slurm jobs.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from train_jax import config_file
from train_jax.arguments import expand_home
from train_jax.command import run_command
from train_jax.errors import ConfigError, Stopped

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs `train-jax sweep`.

    Returns the exit code: 0, 1 if a run failed or no trial of a search has finished, 2 for a user error, 130 or 143 after a
    signal.
    """
    parser = argparse.ArgumentParser(
        "train-jax sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="CONFIG", help="config file or name, such as clip/shapes")
    parser.add_argument("--workdir", required=True, help="folder of the run directories; created if missing")
    parser.add_argument("--machine", default="", metavar="NAME", help="machine preset of all runs, or a preset file")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="NAME=VALUE,…", help="values of an option; repeat for more options"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="random seeds of each point (default 1)")
    parser.add_argument("--where", default="", metavar="CONDITION", help="only points for which this holds")
    parser.add_argument("--max-runs", type=int, metavar="N", help="start or resume at most N runs")
    parser.add_argument("--retry-failed", action="store_true", help="also resume runs that failed")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and its cost, and exit")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--together", action="store_true", help="train runs that differ only in numbers in one program")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where runs are started")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="NAME=VALUE", help="a parameter of submitit, such as timeout_min=600"
    )
    parser.add_argument("--search", choices=("optuna",), help="choose points by their results instead of trying all")
    parser.add_argument("--trials", type=int, metavar="N", help="with --search: number of runs")
    parser.add_argument(
        "--range", action="append", default=[], metavar="NAME=LOW:HIGH[:log]", help="with --search: range of an option"
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--minimize", metavar="METRIC", help="with --search: metric of the last update, to be small")
    goal.add_argument("--maximize", metavar="METRIC", help="with --search: metric of the last update, to be large")
    arguments, words = parser.parse_known_args(expand_home(argv))
    for word in words:
        if not word.startswith(config_file.OPTION):
            parser.error(f"unexpected argument {word!r}: options of all runs are written {config_file.OPTION}NAME=VALUE")
    arguments.overrides = words
    arguments.run, arguments.command = _run, "sweep"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("train_jax").setLevel(logging.INFO)
    try:
        return run_command("train-jax", arguments, again="; the same command goes on")
    except Stopped as stopped:
        print("train-jax sweep: stopped, with all runs saved; the same command goes on", file=sys.stderr)
        return stopped.exit_code


def _run(arguments: argparse.Namespace) -> int:
    from train_jax.sweep import Sweep
    from train_jax.sweep.points import make_points, parse_grid

    _check(arguments)
    base = config_file.load(arguments.config)
    if arguments.machine:
        base = config_file.on_machine(base, arguments.machine)
    grid = parse_grid(arguments.grid, config_file.override(base, arguments.overrides))
    if arguments.search:
        return _search(arguments, base, grid)
    points = make_points(
        arguments.config,
        overrides=arguments.overrides,
        machine=arguments.machine,
        grid=grid,
        seeds=arguments.seeds,
        where=arguments.where,
    )
    sweep = Sweep(
        arguments.config, arguments.workdir, points, overrides=arguments.overrides, machine=arguments.machine
    )
    due = sweep.list_due(max_runs=arguments.max_runs, retry_failed=arguments.retry_failed)
    if arguments.dry_run:
        from train_jax.sweep.cost import format_costs

        print(format_costs(sweep, due))
        return 0
    log.info("%d of %d runs are due", len(due), len(points))
    if arguments.launcher == "slurm":
        for point, job in zip(due, sweep.submit(due, arguments.jobs, _parse_slurm(arguments.slurm)), strict=True):
            print(f"{job.job_id}  {point.name}")
        return 0
    if arguments.together:
        sweep.train_together(due)
    else:
        sweep.train(due, arguments.jobs)
    return _report(sweep.read())


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for arguments that contradict each other."""
    for option, value in (("--jobs", arguments.jobs), ("--max-runs", arguments.max_runs), ("--trials", arguments.trials)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}={value}; it must be at least 1")
    if arguments.together and (arguments.jobs > 1 or arguments.launcher == "slurm"):
        raise ConfigError("--together trains all runs in one process: leave --jobs and --launcher=slurm out")
    if arguments.slurm and arguments.launcher != "slurm":
        raise ConfigError("--slurm without --launcher=slurm")
    metric = arguments.minimize or arguments.maximize
    for option, value in (("--trials", arguments.trials), ("--range", arguments.range), ("--minimize/--maximize", metric)):
        if value and not arguments.search:
            raise ConfigError(f"{option} without --search=optuna")
        if not value and arguments.search and option != "--range":
            raise ConfigError(f"--search={arguments.search} needs {option}")
    if arguments.search:
        for option, value in (
            ("--seeds", arguments.seeds > 1),
            ("--where", arguments.where),
            ("--together", arguments.together),
            ("--launcher=slurm", arguments.launcher == "slurm"),
            ("--dry-run", arguments.dry_run),
            ("--max-runs", arguments.max_runs),
            ("--retry-failed", arguments.retry_failed),
        ):
            if value:
                raise ConfigError(f"{option} cannot be combined with --search, which chooses one point after the other")


def _search(arguments: argparse.Namespace, base: Any, grid: dict[str, list]) -> int:
    from train_jax.sweep import trials

    study = trials.Study(
        arguments.config,
        arguments.workdir,
        choices=grid,
        ranges=trials.parse_ranges(arguments.range, base),
        metric=arguments.minimize or arguments.maximize,
        goal="minimize" if arguments.minimize else "maximize",
        overrides=arguments.overrides,
        machine=arguments.machine,
    )
    study.run(arguments.trials, arguments.jobs)
    print(study.format())
    return 0 if study.best is not None else 1


def _parse_slurm(words: Sequence[str]) -> dict[str, Any]:
    """Parses `--slurm NAME=VALUE`."""
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--slurm {word}: a parameter of submitit is written NAME=VALUE, such as timeout_min=600")
        options[name] = int(value) if value.isdigit() else value
    return options


def _report(runs: Sequence[Any]) -> int:
    """Prints the table of the runs and how many failed. Returns the exit code."""
    from train_jax.runs import tables, text

    print(text.format_table(tables.table(runs), text.choose_width()))
    failed = [run for run in runs if run.status in ("failed", "damaged")]
    for run in failed:
        print(f"{run.name}: {run.status}: {run.error}", file=sys.stderr)
    return 1 if failed else 0
