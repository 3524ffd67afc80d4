"""Search of options by their results, one trial after the other, by Optuna's samplers.

The study is a journal in the folder of the runs, and each trial is an ordinary run directory: repeating the command resumes
trials that were interrupted and goes on with what the finished ones taught.
"""

import concurrent.futures
import dataclasses
import difflib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file, prepare
from train_jax.errors import ConfigError, Stopped
from train_jax.preemption import StopRequest
from train_jax.runs.read import read_run
from train_jax.sweep import launch
from train_jax.sweep.points import Point, check
from train_jax.sweep.sweep import Sweep, describe_changes

log = logging.getLogger(__name__)

_JOURNAL = "optuna.jsonl"


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of an option: numbers from `low` to `high`, integers if both are; `log`: uniform in the logarithm."""

    low: float | int
    high: float | int
    log: bool = False


def parse_ranges(words: Sequence[str], config: ConfigDict) -> dict[str, Range]:
    """Parses words `NAME=LOW:HIGH[:log]`. Raises ConfigError for another form, or an option that does not exist."""
    ranges = {}
    for word in words:
        name, _, text = word.partition("=")
        parts = text.split(":")
        try:
            low, high = (config_file.parse_value(part, 0.0) for part in parts[:2])
            is_range = low < high and parts[2:] in ([], ["log"]) and (low > 0 or not parts[2:])
        except (ValueError, TypeError):
            is_range = False
        if not is_range:
            raise ConfigError(f"--range {word}: a range is written NAME=LOW:HIGH, or NAME=LOW:HIGH:log with 0 < LOW < HIGH")
        if name in ranges:
            raise ConfigError(f"--range {name} occurs twice: leave one of them out")
        default = config_file.option(config_lib.fill(config), name)
        is_integer = isinstance(default, int) and isinstance(low, int) and isinstance(high, int)
        low, high = (low, high) if is_integer else (float(low), float(high))
        ranges[name] = Range(low, high, bool(parts[2:]))
    return ranges


class Study:
    """Search of the options that make a metric of the last update best.

    Args:
      config: config file or name.
      workdir: folder of the run directories.
      choices: dotted name -> values.
      ranges: dotted name -> range.
      metric: name of a metric, such as "test/top1".
      goal: "minimize" or "maximize" the metric.
      overrides: options of all runs, as `--config.NAME=VALUE`.
      machine: machine preset; empty: none.

    Raises ConfigError without options to choose or without Optuna, and for options that no run could have.
    """

    def __init__(
        self,
        config: str,
        workdir: str | os.PathLike,
        *,
        choices: Mapping[str, Sequence],
        ranges: Mapping[str, Range],
        metric: str,
        goal: Literal["minimize", "maximize"],
        overrides: Sequence[str] = (),
        machine: str = "",
    ):
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("--search=optuna needs Optuna: pip install 'multimodal-jax[optuna]'") from error
        if not choices and not ranges:
            raise ConfigError("--search needs options to choose: --range NAME=LOW:HIGH or --grid NAME=VALUE,…")
        if twice := [name for name in choices if name in ranges]:
            raise ConfigError(f"--grid {twice[0]} and --range {twice[0]} both choose it: leave one of them out")
        base = config_file.load(config)
        base = config_file.on_machine(base, machine) if machine else base
        self._base = config_file.override(base, overrides)
        # Both ends of all ranges and all values are checked before the first trial, though not their combinations.
        check(self._base, {name: r.low for name, r in ranges.items()} | {name: v[0] for name, v in choices.items()})
        for name, values in (choices | {name: (r.low, r.high) for name, r in ranges.items()}).items():
            for value in values:
                check(self._base, {name: value})
        self._choices, self._ranges, self._metric, self._optuna = choices, ranges, metric, optuna
        self._sweep = Sweep(config, workdir, [], overrides=overrides, machine=machine)
        self._sweep.workdir.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = optuna.storages.journal.JournalFileBackend(str(self._sweep.workdir / _JOURNAL))
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name="sweep",
            load_if_exists=True,
            direction=goal,
        )
        # A sampler's random numbers begin anew in each process: with the same seed it would propose the same trials again.
        seed = np.random.SeedSequence([config_lib.fill(self._base).seed, len(self.study.trials)]).generate_state(1)[0]
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed), constant_liar=True)
        self._check_same_search(goal)

    def _check_same_search(self, goal: str) -> None:
        """Records what is searched for, and with which options. Raises ConfigError for a study of another search."""
        study, remedy = self.study, "Choose another --workdir"
        is_measured = any(trial.value is not None for trial in study.trials)  # a wrong metric may be corrected until then
        metric = study.user_attrs.get("metric", self._metric) if is_measured else self._metric
        if study.direction.name.lower() != goal or metric != self._metric:
            held = f"{study.direction.name.lower()}s {study.user_attrs.get('metric')}"
            raise ConfigError(f"{self._sweep.workdir} holds a search that {held}. {remedy}")
        options = {name: [repr(value) for value in values] for name, values in self._choices.items()}
        # Bounds may change between calls, but not the kind of a range.
        options |= {name: f"{type(r.low).__name__}{', log' * r.log}" for name, r in self._ranges.items()}
        saved = study.user_attrs.get("options", options)
        if saved != options:
            held = f"other options, values of --grid or kinds of --range: {saved}"
            raise ConfigError(f"{self._sweep.workdir} holds a search of {held}. {remedy}")
        if (base := study.user_attrs.get("config")) and (changes := describe_changes(base, self._base)):
            raise ConfigError(f"{self._sweep.workdir} holds a search with other options of all runs: {changes}. {remedy}")
        study.set_user_attr("metric", self._metric)
        study.set_user_attr("options", options)
        study.set_user_attr("config", json.loads(prepare.as_json(config_lib.resolve(self._base))))

    def run(self, trials: int, jobs: int = 1) -> None:
        """Runs trials, `jobs` at a time, until the study has `trials` that are finished or failed.

        Raises Stopped after a stop signal, with all runs saved, and ConfigError if a finished run has no such metric.
        """
        state = self._optuna.trial.TrialState
        lock = threading.Lock()
        interrupted = [trial.number for trial in self.study.trials if trial.state in (state.RUNNING, state.WAITING)]
        left = max(trials - sum(trial.state.is_finished() for trial in self.study.trials), 0)
        shares = launch.divide_gpus(jobs, launch.list_gpus())
        queue = [*interrupted[:left], *[None] * (left - len(interrupted))]
        with StopRequest() as stop, concurrent.futures.ThreadPoolExecutor(jobs) as pool:

            def work(share: Mapping[str, str]) -> None:
                while not stop.signal_number:
                    with lock:
                        if not queue:
                            return
                        number = queue.pop(0)
                        number = self._ask() if number is None else number
                    try:
                        self._run_trial(number, lambda: stop.signal_number, share, lock)
                    except BaseException:
                        queue.clear()  # no trial begins after an error
                        raise

            workers = [pool.submit(work, share) for share in shares]
            while not all(worker.done() for worker in workers):
                concurrent.futures.wait(workers, timeout=0.2)
            for worker in workers:
                worker.result()
        if stop.signal_number:
            raise Stopped(0, stop.signal_number)

    @property
    def best(self) -> Any:
        """Trial of Optuna with the best metric; None if no trial has finished."""
        try:
            return self.study.best_trial
        except ValueError:
            return None

    def format(self) -> str:
        """Formats the best trial: its metric, its options and its directory."""
        best = self.best
        if best is None:
            return "no trial has finished"
        options = ", ".join(f"{name}={value}" for name, value in self._read_options(best).items())
        folder = self._folder(best.number)
        return f"best of {len(self.study.trials)} trials: {self._metric} {best.value:.5g} with {options} in {folder}"

    def _ask(self) -> int:
        """Asks the sampler for the options of the next trial. Returns its number."""
        trial = self.study.ask()
        self._suggest(trial)
        return trial.number

    def _suggest(self, trial: Any) -> None:
        """Chooses the options of a trial that have not been chosen."""
        for name, values in self._choices.items():
            trial.suggest_categorical(name, [repr(value) for value in values])
        for name, bounds in self._ranges.items():
            suggest = trial.suggest_int if isinstance(bounds.low, int) else trial.suggest_float
            suggest(name, bounds.low, bounds.high, log=bounds.log)

    def _read_options(self, trial: Any) -> dict[str, Any]:
        options = dict(trial.params)
        for name, values in self._choices.items():
            options[name] = next(value for value in values if repr(value) == options[name])
        return options

    def _folder(self, number: int):
        return self._sweep.workdir / f"trial-{number:04d}"

    def _run_trial(self, number: int, stop: Callable[[], int], share: Mapping[str, str], lock: threading.Lock) -> None:
        """Runs a trial to its end and tells the study its metric. An interrupted trial stays open."""
        with lock:
            trial = self.study.trials[number]
            if len(trial.params) < len(self._choices) + len(self._ranges):  # killed while they were chosen
                self._suggest(self._optuna.trial.Trial(self.study, trial._trial_id))
            options = self._read_options(self.study.trials[number])
        point = Point(f"trial-{number:04d}", options, config_file.set_options(self._base, options))
        self._sweep.make_process(point)(stop, share)
        run = read_run(self._sweep.folder(point))
        state = self._optuna.trial.TrialState
        if run.status == "unfinished" or (run.status == "empty" and stop()):
            return
        columns = run.history.to_dict()
        if run.status == "finished" and self._metric not in columns:  # nor will others have it; the trial stays open
            near = difflib.get_close_matches(self._metric, columns, 3) or columns
            raise ConfigError(f"{point.name} has no metric {self._metric!r}, but {', '.join(near)}; its run is kept")
        value = run.history.last(self._metric) if run.status == "finished" else None
        with lock:
            if value is None or not math.isfinite(value):
                error = run.error or f"{self._metric} is {value}"
                log.error("%s: failed: %s", point.name, error)
                self.study.tell(number, state=state.FAIL)
            else:
                self.study.tell(number, value)
                log.info("%s: %s %.5g with %s", point.name, self._metric, value, options)
