"""Sweeps: the runs of several points of one config, below one directory.

    from train_jax import sweep, runs
    sweep.run("clip/digits", "runs/lr", grid={"optim.lr": [1e-3, 3e-4]}, seeds=3, together=True)
    runs.summary("runs/lr", "test/top1", by=["optim.lr"])

Each point is an ordinary run directory. Repeating a sweep skips finished runs, resumes interrupted ones, and starts the
others. `train-jax sweep` is the same on the command line.
"""

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file, paths, prepare, resume, sharding
from train_jax.data.errors import USER_ERRORS
from train_jax.errors import ConfigError
from train_jax.ownership import find_owner
from train_jax.runs.read import Run, read_run
from train_jax.sweep import launch
from train_jax.sweep.points import Point, make_points

# Beginnings of options that a run's weights do not depend on.
_FREE = ("log_every", "evals.", "checkpoint.", "hooks", "mesh.")
_FREE += ("data.threads", "data.workers", "data.data_dir", "data.max_broken")

log = logging.getLogger(__name__)

FILE = "sweep.json"
_CACHE = ".compiled"  # programs that runs share, such as those of evaluations
Launcher = Literal["local", "slurm"]


def run(
    config: str,
    workdir: str | os.PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    machine: str = "",
    grid: Mapping[str, Sequence] | None = None,
    seeds: int = 1,
    where: str = "",
    together: bool = False,
    jobs: int = 1,
    max_runs: int | None = None,
    retry_failed: bool = False,
) -> list[Run]:
    """Runs a sweep and returns its runs, finished, unfinished or failed, in the order of the points.

    Args:
      config: config file or name.
      workdir: folder of the run directories.
      overrides: options of all runs by dotted name.
      machine: machine preset; empty: none.
      grid: dotted name -> values; the points are all combinations.
      seeds: number of random seeds of each point, from `config.seed` upwards.
      where: condition on options that points must satisfy; empty: none.
      together: train runs that differ only in numbers in one program.
      jobs: number of processes, without `together`.
      max_runs: number of runs that are started or resumed at most; None: all.
      retry_failed: also resume runs that failed.

    Raises ConfigError, before the first run starts, if the options of any point are wrong.
    """
    words = config_file.as_words(overrides or {})
    points = make_points(config, overrides=words, machine=machine, grid=grid, seeds=seeds, where=where)
    sweep = Sweep(config, workdir, points, overrides=words, machine=machine)
    due = sweep.list_due(max_runs=max_runs, retry_failed=retry_failed)
    if together:
        sweep.train_together(due)
    else:
        sweep.train(due, jobs)
    return sweep.read()


def describe_changes(saved: Mapping[str, Any], config: ConfigDict) -> str:
    """Describes the options on which weights depend that differ from those of a saved config; empty if there are none."""
    changes = resume.compare_configs(saved, json.loads(prepare.as_json(config_lib.resolve(config))))
    return ", ".join(
        f"config.{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items() if not name.startswith(_FREE)
    )


class Sweep:
    """Points of a config and their run directories.

    Args:
      config: config file or name.
      workdir: folder of the run directories.
      points: points of the sweep.
      overrides: options of all runs, as `--config.NAME=VALUE`.
      machine: machine preset; empty: none.

    Raises ConfigError if a run directory holds another experiment than its point.
    """

    def __init__(
        self,
        config: str,
        workdir: str | os.PathLike,
        points: Sequence[Point],
        *,
        overrides: Sequence[str] = (),
        machine: str = "",
    ):
        self.points, self.workdir = list(points), paths.path(workdir)
        if not isinstance(self.workdir, Path):
            raise ConfigError(f"--workdir={workdir}: the runs of a sweep are below a folder of this machine's disks")
        self._shared = [f"--config={config}", *([f"--machine={machine}"] if machine else []), *overrides]
        for point in self.points:
            prepare.check_same_experiment(config_lib.resolve(point.config), self.folder(point))

    def folder(self, point: Point) -> Path:
        """Returns the run directory of a point."""
        return self.workdir / point.name

    def command(self, point: Point) -> list[str]:
        """Returns the arguments of `train-jax` that make the run of a point alone."""
        return [*self._shared, *config_file.as_words(point.options), f"--workdir={self.folder(point)}"]

    def read(self) -> list[Run]:
        """Reads the runs of all points, also of those that have not started."""
        return [read_run(self.folder(point)) for point in self.points]

    def list_due(self, *, max_runs: int | None = None, retry_failed: bool = False) -> list[Point]:
        """Lists the points whose runs have not finished.

        Without those that another process trains now, and without those that failed unless `retry_failed`.

        Raises ConfigError if a finished run had other options than its point.
        """
        due = []
        for point, run in zip(self.points, self.read(), strict=True):
            # More steps than a finished run had make it an unfinished one.
            is_finished = run.status == "finished" and run.step >= point.config.steps
            if is_finished and (changes := describe_changes(run.config, point.config)):
                raise ConfigError(f"{run.path} has finished with other options: {changes}. Choose another --workdir")
            if owner := find_owner(self.folder(point)):
                log.info("%s: is being trained by %s", point.name, owner)
            elif is_finished or (run.status == "failed" and not retry_failed):
                log.info("%s: %s%s", point.name, run.status, f": {run.error}" if run.error else "")
            else:
                due.append(point)
        return due[:max_runs]

    def train(self, points: Sequence[Point], jobs: int = 1) -> None:
        """Trains runs in processes of their own, up to `jobs` at a time. Raises Stopped after a stop signal."""
        self._write_record()
        names = {self.folder(point).name: point for point in points}

        def report(name: str, code: int) -> None:
            run = read_run(self.folder(names[name]))
            log.info("%s: %s%s", name, run.status, f": {run.error}" if run.error else "")

        processes = {name: self.make_process(point) for name, point in names.items()}
        launch.run_processes(processes, jobs, report)

    def submit(self, points: Sequence[Point], jobs: int, options: Mapping[str, Any]) -> list[Any]:
        """Submits runs as an array of Slurm jobs; see `train_jax.sweep.launch.submit_to_slurm`."""
        self._write_record()
        processes = {point.name: self.make_process(point) for point in points}
        return launch.submit_to_slurm(processes, self.workdir / ".slurm", jobs, options)

    def train_together(self, points: Sequence[Point]) -> None:
        """Trains runs in one program, or in few. Raises Stopped after a stop signal, ConfigError for meshes of devices."""
        from train_jax.sweep.together import train_together

        for point in points:
            try:
                sharding.mesh_shape(config_lib.resolve(point.config).mesh, 1)
            except ConfigError as error:
                raise ConfigError(f"{point.name}: runs that train together have one device each: {error}") from error
        self._write_record()
        folders = {point.name: self.folder(point) for point in points}

        def fail(name: str, error: Exception) -> None:
            log.error("%s: failed: %s", name, error, exc_info=None if isinstance(error, USER_ERRORS) else error)
            launch.record_failure(folders[name], f"{type(error).__name__}: {error}")

        for folder in folders.values():
            launch.clear_failure(folder)
        runs = {point.name: (point.config, folders[point.name]) for point in points}
        train_together(runs, fail, launch.name_cache(self.workdir / _CACHE))

    def make_process(self, point: Point) -> launch.Process:
        """Makes the process of a point's run."""
        return launch.Process(self.command(point), self.folder(point), self.workdir / _CACHE)

    def _write_record(self) -> None:
        """Writes `sweep.json`: the options of each point and the command that repeats its run."""
        content = {
            "time": time.time(),
            "command": shlex.join(["train-jax", *sys.argv[1:]]),
            "points": {
                point.name: {
                    "options": {name: str(value) for name, value in point.options.items()},
                    "command": shlex.join(["train-jax", *self.command(point)]),
                }
                for point in self.points
            },
        }
        self.workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        paths.write_atomically(self.workdir / FILE, lambda stream: stream.write(text.encode()))

