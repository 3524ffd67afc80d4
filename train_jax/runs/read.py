"""Run directories as they are: config, metrics, evaluations, environment and status, without JAX and without weights."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from train_jax import metrics, paths
from train_jax.data.errors import DataError
from train_jax.evaluation.results import FILE as EVALUATIONS
from train_jax.evaluation.results import read_evaluations
from train_jax.metrics import History
from train_jax.paths import AnyPath

Status = Literal["finished", "unfinished", "failed", "damaged", "empty", "evaluated"]

_PARTS = ("metrics.jsonl", "checkpoints", "failure.json")  # a folder with one of these is a run directory
_LINES = ".jsonl"  # suffix of files of evaluations
_COMMITTED = "commit_success.txt"  # Orbax's mark of a complete checkpoint in object storage, which cannot rename folders


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
      path: the run directory.
      name: its name, or after `find_runs` as many parts of its path as distinguish it from the other runs.
      status: "finished": the last metrics and a complete checkpoint are those of `config.steps`; "unfinished": running or
        interrupted; "failed": it holds a `failure.json`; "damaged": its config or its metrics are missing or unreadable;
        "empty": there is no such directory, or nothing of a run in it; "evaluated": it is no run, but a model of a file of
        evaluations.
      step: step of the last metrics; without metrics that of the newest complete checkpoint, or 0.
      checkpoint: step of the newest complete checkpoint; None if there is none.
      steps: `config.steps`; None if it is unknown.
      error: why the run failed, and what is damaged; None if nothing is.
      config: the nested options of `config.json`; {} if it cannot be read.
      history: the rows of `metrics.jsonl` that can be read.
      evaluations: results of evaluations without training (`train_jax.evaluation.results`) as rows of metrics, with names
        such as "test/top1 on digits:test".
      environment: the content of `environment.json`, `{"starts": [...]}` (see `train_jax.environment`); {} for runs of
        older versions.
      artifacts: hashes of the files beside the weights, the content of `artifacts.json`; {} if it cannot be read.
    """

    path: AnyPath
    name: str
    status: Status
    step: int
    checkpoint: int | None
    steps: int | None
    error: str | None
    config: dict[str, Any]
    history: History
    evaluations: History
    environment: dict[str, Any]
    artifacts: dict[str, Any]

    @property
    def measurements(self) -> History:
        """Rows of metrics of the training, and after it."""
        return History([*self.history, *self.evaluations])


def read_run(path: str | os.PathLike) -> Run:
    """Reads a run directory. What is missing or damaged is told by the status and the error, never raised."""
    folder = paths.path(path)
    damages: list[str] = []
    config = _read_object(folder / "config.json", damages)
    history = _read_history(folder, damages)
    checkpoint = max(_list_checkpoints(folder / "checkpoints", damages), default=None)
    failure_damages: list[str] = []
    failure = _read_object(folder / "failure.json", failure_damages)
    has_failed = failure is not None or bool(failure_damages)
    steps = None if config is None else config.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool):
        steps = None
    is_empty = config is None and not damages and not history and checkpoint is None
    if config is None and not damages and not is_empty:
        damages.append("config.json is missing")
    elif config is not None and steps is None:
        damages.append("config.json has no number of steps")
    step = history[-1]["step"] if history else checkpoint or 0
    notes = failure_damages if failure is None else [str(failure.get("error", "failure.json names no error"))]
    if has_failed:
        status = "failed"
    elif is_empty:
        status = "empty"
        notes = ["no such directory" if not _is_folder(folder) else "the directory holds no run"]
    elif damages:
        status = "damaged"
    else:
        status = "finished" if steps == step == checkpoint else "unfinished"
    # A run that lacks these is not damaged: it can be resumed.
    evaluations = History()
    try:
        evaluations = History(row for _, row in _read_evaluations(folder / EVALUATIONS, step))
    except (DataError, OSError) as error:
        damages.append(f"{EVALUATIONS} cannot be read ({error})")
    environment, artifacts = (_read_object(folder / f"{name}.json", damages) for name in ("environment", "artifacts"))
    return Run(
        path=folder,
        name=os.path.basename(os.path.abspath(folder)) if isinstance(folder, Path) else folder.name,
        status=status,
        step=step,
        checkpoint=checkpoint,
        steps=steps,
        error="; ".join([*notes, *damages]) or None,
        config=config or {},
        history=history,
        evaluations=evaluations,
        environment=environment or {},
        artifacts=artifacts or {},
    )


def find_runs(paths_of_runs: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Run]:
    """Reads all runs of some paths: run directories, folders of run directories at any depth, globs, files of evaluations.

    Folders below a run directory are not searched. A path without any run is one run of status "empty". Each model of a
    file of evaluations is a run, with these evaluations beside its own if the model is a run directory. Runs are in the
    order of the paths, and of their names within a path; each is read once.
    """
    if isinstance(paths_of_runs, str | os.PathLike):
        paths_of_runs = [paths_of_runs]
    runs: dict[str, Run] = {}
    for pattern in paths_of_runs:
        start = paths.path(pattern)
        if start.suffix == _LINES and start.is_file():
            _add_evaluations(start, runs)
            continue
        matches = [start] if _is_folder(start) else [match for match in paths.glob(os.fspath(pattern)) if _is_folder(match)]
        found = [folder for match in matches for folder in _search(match, frozenset())]
        for folder in found or matches or [start]:
            if _identity(folder) not in runs:
                runs[_identity(folder)] = read_run(folder)
    return distinguish(list(runs.values()))


def _add_evaluations(file: AnyPath, runs: dict[str, Run]) -> None:
    """Adds the results of a file to the runs that they belong to, by `_identity`, and runs for other models."""
    results: dict[str, list[dict[str, Any]]] = {}
    for model, row in _read_evaluations(file, 0):
        results.setdefault(model, []).append(row)
    for model, rows in results.items():
        path = paths.path(model)
        run = runs.get(_identity(path)) or read_run(path)
        if run.status == "empty":
            run = dataclasses.replace(run, status="evaluated", error=None)
        known = [row for row in run.evaluations if row not in rows]
        runs[_identity(path)] = dataclasses.replace(run, evaluations=History([*known, *rows]))


def distinguish(runs: Sequence[Run]) -> list[Run]:
    """Names runs by as many of the last parts of their paths as make the names distinct. Removes repeated paths."""
    unique = {os.path.abspath(run.path) if isinstance(run.path, Path) else str(run.path): run for run in runs}
    depth = 1
    while len(names := ["/".join(path.split("/")[-depth:]) for path in unique]) > len(set(names)):
        depth += 1
    return [dataclasses.replace(run, name=name) for run, name in zip(unique.values(), names, strict=True)]


def _search(folder: AnyPath, ancestors: frozenset[str]) -> Iterator[AnyPath]:
    """Yields the run directories in a folder, sorted by path. Follows links, but not to an ancestor."""
    try:
        children = sorted(folder.iterdir())
    except OSError:
        yield folder  # reading it tells why
        return
    if not {child.name for child in children}.isdisjoint(_PARTS):
        yield folder
        return
    ancestors |= {_identity(folder)}
    for child in children:
        if _is_folder(child) and _identity(child) not in ancestors:
            yield from _search(child, ancestors)


def _identity(folder: AnyPath) -> str:
    return os.path.realpath(folder) if isinstance(folder, Path) else str(folder)


def _is_folder(path: AnyPath) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def _read_object(file: AnyPath, damages: list[str]) -> dict[str, Any] | None:
    """Reads a JSON object; returns None if the file is missing, and adds to `damages` if it is unreadable."""
    try:
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        damages.append(f"{file.name} cannot be read ({error.strerror or error})")
    except (ValueError, RecursionError) as error:
        damages.append(f"{file.name} is no JSON object ({error})")
    return None


def _read_history(folder: AnyPath, damages: list[str]) -> History:
    """Reads the rows of metrics that are readable, and adds to `damages` if there are others."""
    errors: list[DataError] = []
    try:
        history = metrics.read(folder, on_invalid=errors.append)
    except OSError as error:
        damages.append(f"metrics.jsonl cannot be read ({error.strerror or error})")
        return History()
    if errors:
        others = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        damages.append(f"{str(errors[0]).removeprefix(f'{folder}{os.sep}')}{others}")
    return history


def _read_evaluations(file: AnyPath, step: int) -> list[tuple[str, dict[str, Any]]]:
    """Reads `(model, row of metrics)` of each result of a file; an empty list if there is none.

    Results without a step get `step`. Raises DataError for an invalid line.
    """
    try:
        return [(row["model"], _to_metrics(row, step)) for row in read_evaluations(file)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} has a line that is no result of an evaluation ({error!r})") from error


def _to_metrics(row: dict[str, Any], step: int) -> dict[str, Any]:
    data = f"{row['source']}:{row['split']}"
    values = {f"{row['evaluator']}/{name} on {data}": value for name, value in row["metrics"].items()}
    return {"step": step if row["step"] is None else row["step"], "time": row["time"], **values}


def _list_checkpoints(folder: AnyPath, damages: list[str]) -> list[int]:
    """Lists the steps of the complete checkpoints: Orbax gives a folder its step as a name only when it is complete."""
    try:
        children = [child for child in folder.iterdir() if child.name.isdecimal() and child.name.isascii()]
        if isinstance(folder, Path):
            complete = [child for child in children if child.is_dir() and any(child.iterdir())]
        else:
            complete = [child for child in children if (child / _COMMITTED).exists()]
        return [int(child.name) for child in complete]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        damages.append(f"checkpoints cannot be listed ({error.strerror or error})")
        return []
