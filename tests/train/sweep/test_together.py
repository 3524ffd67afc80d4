"""Runs that train together, against the same runs made alone."""

import dataclasses
import itertools
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_task
from drive_toy import config, metric_rows

import train_jax
from train_jax import sharding, trained_weights
from train_jax.errors import ConfigError, Interrupted, Stopped
from train_jax.runs import read_run
from train_jax.sweep import launch, together
from train_jax.sweep.together import Member, _group, train_together

SHORT = {"steps": 50, "log_every": 25, "checkpoint": {"every": 25, "keep_last": 2}}
SGD = {"players": {"discriminator": {"weight_decay": 0.0}}}
POINTS = {
    "a": {"seed": 0, "optim": {"lr": 1e-3, "warmup_steps": 5, "weight_decay": 0.1, **SGD}, "ema": {"decay": 0.9}},
    "b": {"seed": 1, "optim": {"lr": 3e-3, "warmup_steps": 8, "weight_decay": 0.3, **SGD}, "ema": {"decay": 0.99}},
    "c": {"seed": 2, "optim": {"lr": 2e-3, "warmup_steps": 5, "weight_decay": 0.1, **SGD}, "steps": 40},
}


def make(folder, names=POINTS, **options):
    return {name: (config(**SHORT | POINTS[name] | options), folder / name) for name in names}


def fail(name, error):
    raise error


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for run_config, workdir in make(folder).values():
        train_jax.run(run_config, workdir)
    return folder


def assert_same_run(run, reference):
    rows, expected = metric_rows(run), metric_rows(reference)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{name} at {row['step']}")
    weights, expected = (trained_weights.load_weights(path / "checkpoints")[:2] for path in (run, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), weights, expected)


def test_runs_equal_those_made_alone(alone, tmp_path):
    train_together(make(tmp_path), fail)
    for name in POINTS:
        assert_same_run(tmp_path / name, alone / name)


TWO = {"steps": 40, "log_every": 10, "checkpoint": {"every": 20}}


@pytest.fixture
def change_task(monkeypatch):
    """Function that changes the task of runs made from now on, by `(config, task) -> task`."""
    make_task = toy_task.make

    def change(function):
        monkeypatch.setattr(toy_task, "make", lambda config, workdir: function(config, make_task(config, workdir)))

    return change


@pytest.fixture(scope="module")
def two_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_alone")
    for run_config, workdir in make(folder, "ab", **TWO).values():
        train_jax.run(run_config, workdir)
    return folder


@pytest.mark.slow
def test_a_signal_or_an_error_during_an_evaluation_loses_nothing(two_alone, tmp_path, change_task):
    """The first evaluation of a run is interrupted, the second fails, and the third goes on."""
    errors = iter([Interrupted(15), ValueError("no memory")])

    def with_errors(config, task):
        def make_norm(options, context):
            evaluate = task.evaluators["norm"](options, context)

            def fail_first(params, extra):
                if error := next(errors, None):
                    raise error
                return evaluate(params, extra)

            return fail_first if config.seed == 0 else evaluate

        return dataclasses.replace(task, evaluators=task.evaluators | {"norm": make_norm})

    change_task(with_errors)
    with pytest.raises(Stopped):
        train_together(make(tmp_path, "ab", **TWO), fail)
    for name in "ab":
        assert [row["step"] for row in metric_rows(tmp_path / name)] == [10, 20]
    failures = {}
    train_together(make(tmp_path, "ab", **TWO), failures.__setitem__)
    assert [str(error) for error in failures.values()] == ["no memory"] and "a" in failures
    assert_same_run(tmp_path / "b", two_alone / "b")
    launch.record_failure(tmp_path / "a", "no memory")
    train_together(make(tmp_path, "ab", **TWO), fail)
    assert_same_run(tmp_path / "a", two_alone / "a")
    assert read_run(tmp_path / "a").status == "finished"  # its failure is forgotten


def test_a_signal_during_the_preparation_fails_no_run(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted(15)

    monkeypatch.setattr(together, "prepare", interrupted)
    with pytest.raises(Stopped, match="stopped after step 0 by SIGTERM"):
        train_together(make(tmp_path, "ab", **TWO), fail)


@pytest.mark.parametrize("example_number", [0, 16 * 12])
def test_a_signal_that_also_ends_the_data_workers_fails_no_run(tmp_path, change_task, example_number):
    """Before the first batch, and in the middle: Ctrl-C reaches all processes of a terminal."""
    calls = itertools.count()

    def with_dying_workers(config, task):
        def example(record, rng):
            if next(calls) == example_number:
                signal.raise_signal(signal.SIGTERM)
                raise OSError("a worker process has died")
            return task.example(record, rng)

        return dataclasses.replace(task, example=example)

    change_task(with_dying_workers)
    # The example is read in the main thread's loop, or in a thread that a signal does not interrupt.
    runs = make(tmp_path, "ab", **TWO, data={"source": "digits", "batch_size": 16, "threads": 1})
    with pytest.raises(Stopped):
        train_together(runs, fail)


def test_unreadable_data_of_one_run_end_it_alone(two_alone, tmp_path, change_task):
    calls = itertools.count()

    def with_bad_data(config, task):
        def example(record, rng):
            if config.seed == 1 and next(calls) > 16 * 30:
                raise OSError("disk failure")
            return task.example(record, rng)

        return dataclasses.replace(task, example=example)

    change_task(with_bad_data)
    failures = {}
    runs = make(tmp_path, "ab", **TWO, data={"source": "digits", "batch_size": 16, "threads": 1})
    train_together(runs, failures.__setitem__)
    assert list(failures) == ["b"] and "disk failure" in str(failures["b"])
    assert_same_run(tmp_path / "a", two_alone / "a")
    change_task(lambda config, task: task)
    train_together({"b": runs["b"]}, fail)
    rows, expected = metric_rows(tmp_path / "b"), metric_rows(two_alone / "b")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert rows[-1] == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.slow
def test_runs_whose_initial_states_differ_in_operations_share_a_program(tmp_path, change_task, caplog):
    def with_doubled_weights(config, task):
        def init(rng, batch):
            params, extra = task.init(rng, batch)
            return (jax.tree.map(lambda x: x + x, params) if config.seed == 0 else params), extra

        return dataclasses.replace(task, init=init)

    change_task(with_doubled_weights)
    short = {**TWO, "steps": 4, "optim": {"lr": 1e-30}, "ema": {"decay": 0.0, "players": ()}}
    with caplog.at_level("INFO", "train_jax.sweep"):
        train_together({str(seed): (config(**short, seed=seed), tmp_path / str(seed)) for seed in (0, 1)}, fail)
    assert "2 runs share a program" in caplog.text
    for seed, factor in ((0, 2), (1, 1)):
        key, _ = jax.random.split(jax.random.key(seed))  # that of the weights
        expected = sharding.unbox(toy_task.init(key, toy_task.batch())[0]["generator"])
        weights = trained_weights.load_weights(tmp_path / str(seed) / "checkpoints")[0]["generator"]
        jax.tree.map(lambda x, y, f=factor: np.testing.assert_allclose(x, f * y, 1e-5, 1e-9), weights, dict(expected))


def test_a_checkpoint_of_another_optimiser_ends_its_run_alone(tmp_path):
    short = {**TWO, "steps": 4, "optim": {"lr": 1e-3, "warmup_steps": 0}}
    train_together(make(tmp_path, "a", **short), fail)
    runs = make(tmp_path, "ab", **short | {"steps": 8, "optim": {"lr": 1e-3, "warmup_steps": 0, "name": "sgd"}})
    failures = {}
    train_together(runs, failures.__setitem__)
    assert list(failures) == ["a"] and metric_rows(tmp_path / "b")[-1]["step"] == 8


def test_a_program_that_exceeds_the_memory_fails_its_runs_alone(tmp_path, monkeypatch):
    def compile_but_one(group, numbers, state, batch, mesh, is_shared):
        if len(group._members) == 2:
            raise ConfigError("the compiled step takes too much")
        return compile_update(group, numbers, state, batch, mesh, is_shared)

    compile_update = together._Group._compile
    monkeypatch.setattr(together._Group, "_compile", compile_but_one)
    short = {**TWO, "steps": 4, "optim": {"lr": 1e-3, "warmup_steps": 0}}
    runs = make(tmp_path, "ab", **short) | make(tmp_path, "c", **short | {"ema": {"decay": 0.0, "players": ()}})
    failures = {}
    train_together(runs, failures.__setitem__)
    assert list(failures) == ["a", "b"] and "too much" in str(failures["a"]), failures
    assert metric_rows(tmp_path / "c")[-1]["step"] == 4


def test_equal_operations_of_other_metrics_are_another_program():
    def make_member(name):
        member = object.__new__(Member)
        trace = jax.jit(lambda x: {name: x + 1}).trace(np.float32(0))
        member.name, member.prepared = name, SimpleNamespace(step=trace)
        return member

    members = [make_member(name) for name in ("recall", "precision", "recall")]
    assert [[member.name for member in group] for group, _ in _group(members)] == [["recall", "recall"], ["precision"]]


@pytest.mark.slow
def test_the_speed_of_runs_is_without_compilation(tmp_path, monkeypatch):
    compile_update = together._Group._compile

    def compile_slowly(*arguments):
        compiled = compile_update(*arguments)
        time.sleep(3)
        return compiled

    monkeypatch.setattr(together._Group, "_compile", compile_slowly)
    runs = {str(steps): (config(steps=steps, log_every=2), tmp_path / str(steps)) for steps in (4, 8)}
    train_together(runs, fail)
    history = [row for run in runs for row in read_run(tmp_path / run).history]
    speeds = [row["examples_per_second"] for row in history if "examples_per_second" in row]
    assert len(speeds) == 6 and min(speeds) > 2 * 16 / 3
