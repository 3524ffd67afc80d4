"""The whole loop on the toy task: a run directory that describes itself, exact resumption, clear refusals."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_task
from drive_toy import config, metric_rows
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

import train_jax
from train_jax import agreement, checkpoint, environment, feed, memory, metrics, sharding, trained_weights
from train_jax.data.errors import BrokenSample, DataError
from train_jax.errors import ConfigError, LoadError, Stopped
from train_jax.evaluation import evaluators
from train_jax.lockstep import Lockstep
from train_jax.runs.read import read_run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference")
    history = train_jax.run(config(), workdir)
    return workdir, history


def test_a_run_directory_describes_itself(reference):
    workdir, _ = reference
    described = json.loads((workdir / "config.json").read_text())
    assert described["task"] == "toy_task" and described["optim"]["name"] == "adamw"
    assert json.loads((workdir / "artifacts.json").read_text()) == {}
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == [20, 30, 40]
    assert list((workdir / "samples").glob("*.png")), "the evaluator's picture"
    assert list(workdir.glob("**/events.out.tfevents*"))
    (start,) = json.loads((workdir / "environment.json").read_text())["starts"]
    assert start["step"] == 0 and 0 < start["time"] < time.time()
    assert start["versions"]["jax"] == jax.__version__
    assert start["code"] == environment.code_version(Path(environment.__file__))
    assert (start["device"], start["devices"], start["hosts"]) == ("cpu", 8, 1)
    # Layers of 4 x 16 and 16 x 4, and of 4 x 16 and 16 x 1, with biases.
    assert start["parameters"] == {"generator": 148, "discriminator": 97}
    assert start["flops_per_example"] == toy_task.TASK.flops and start["records"] == 1438
    assert start["peak_bytes"] > 4 * (148 + 97)


def test_a_finished_run_is_read_as_such(reference):
    workdir, history = reference
    run = read_run(workdir)
    assert (run.status, run.step, run.checkpoint, run.error) == ("finished", 40, 40, None) and run.history == history


def test_history_holds_training_and_evaluation(reference):
    _, history = reference
    columns = history.to_dict()
    assert len(columns["loss"]) == len(history)
    steps = [row["step"] for row in history if "loss" in row]
    assert steps == list(range(1, 41))
    assert [row["step"] for row in history if "end/norm" in row] == [20, 40]
    assert all(np.isfinite(row["loss"]) for row in history if "loss" in row)


def test_a_run_in_two_parts_equals_an_uninterrupted_one(reference, tmp_path):
    part = config(checkpoint={"every": 7})  # checkpoints do not change a run
    with _stop_after(23), pytest.raises(Stopped, match=r"stopped after step 2\d by SIGTERM") as stopped:
        train_jax.run(part, tmp_path)
    assert stopped.value.exit_code == 143
    assert metric_rows(tmp_path)[-1]["step"] < 40
    assert read_run(tmp_path).status == "unfinished"
    train_jax.run(part, tmp_path)
    assert metric_rows(tmp_path) == metric_rows(reference[0])
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, int(str(stopped.value).split()[3])]


EVALUATED = {"steps": 4, "evals": {"order": {"type": "order", "every": 2}}}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The metrics of an uninterrupted run with evaluations."""
    workdir = tmp_path_factory.mktemp("evaluated")
    train_jax.run(config(**EVALUATED), workdir)
    return metric_rows(workdir)


def test_an_evaluation_that_a_signal_interrupts_is_made_up_for(evaluated, tmp_path, monkeypatch):
    def example(record, rng):
        if not read:
            os.kill(os.getpid(), signal.SIGTERM)
        read.append(record["id"])
        return original(record, rng)

    def to_device(batch, *options):
        assert "pixels" not in batch, "no batch is evaluated after the signal"
        return feed.to_device(batch, *options)

    read: list[str] = []
    original = toy_task.evaluated_example
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="after step 2"):
        patch.setattr(toy_task, "evaluated_example", example)
        patch.setattr(evaluators, "feed", SimpleNamespace(to_device=to_device))
        train_jax.run(config(**EVALUATED), tmp_path)
    assert [row["step"] for row in metric_rows(tmp_path)] == [1, 2] and read
    train_jax.run(config(**EVALUATED), tmp_path)
    assert metric_rows(tmp_path) == evaluated


@contextlib.contextmanager
def failing_evaluations(monkeypatch):
    """No record can be evaluated."""

    def example(record, rng):
        raise DataError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(toy_task, "evaluated_example", example)
        yield


def test_a_failed_evaluation_is_made_up_for(evaluated, tmp_path, monkeypatch):
    with failing_evaluations(monkeypatch), pytest.raises(DataError, match="the disk is gone"):
        train_jax.run(config(**EVALUATED), tmp_path)
    train_jax.run(config(**EVALUATED), tmp_path)
    assert metric_rows(tmp_path) == evaluated


def test_a_finished_run_makes_up_for_an_evaluation_once(tmp_path, monkeypatch):
    changes = {"steps": 4, "evals": {"order": {"type": "order", "every": 0}}}

    with failing_evaluations(monkeypatch), pytest.raises(DataError, match="the disk is gone"):
        train_jax.run(config(**changes), tmp_path / "run")
    train_jax.run(config(**changes), tmp_path / "run")
    before = metric_rows(tmp_path / "run")
    assert "order/misplaced" in before[-1]
    with failing_evaluations(monkeypatch):
        train_jax.run(config(**changes), tmp_path / "run")
    assert metric_rows(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["order", "norm"])
def test_a_run_directory_shows_which_evaluations_were_made(name, tmp_path):
    """By metrics or by pictures alone."""
    with contextlib.closing(metrics.Writer(tmp_path, total_steps=4)) as writer:
        writer.write(2, {"loss": 1.0, "order/misplaced": 0.0})
        writer.write_images(2, {"norm/grey": np.zeros((4, 6, 3), np.uint8)})
        assert writer.has_results(2, [name, "other"])
        assert not writer.has_results(1, [name])
        assert not writer.has_results(2, ["other"]) and not writer.has_results(2, [name[:2]])
    with contextlib.closing(metrics.Writer(tmp_path, total_steps=4, start_step=1)) as writer:  # goes on from before
        assert not writer.has_results(2, [name])


def test_hosts_that_cannot_talk_to_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="JAX sees 2 hosts, and jax.distributed is not initialised: .*--distributed=on"):
        agreement.check_connected()


def test_hosts_that_see_different_data_are_an_error(monkeypatch):
    monkeypatch.setattr(agreement, "gather", lambda value: [value, value - 1])
    with pytest.raises(DataError, match="records of shapes: process 0: 1,000, process 1: 999. Give all of them the same"):
        agreement.check_same(1000, "records of shapes")


def test_a_damaged_config_of_a_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 4')
    with pytest.raises(LoadError, match="config.json is not JSON"):
        train_jax.run(config(), tmp_path)


def test_a_failed_save_does_not_hide_the_error_that_ended_the_run(tmp_path):
    class Failing(checkpoint.Checkpoints):
        def close(self):
            super().close()
            raise checkpoint.CheckpointError("the last checkpoint could not be saved")

    with pytest.raises(ZeroDivisionError), checkpoint.closing(Failing(tmp_path, every=1, keep_last=1)):
        1 / 0  # noqa: B018
    with pytest.raises(checkpoint.CheckpointError), checkpoint.closing(Failing(tmp_path, every=1, keep_last=1)):
        pass


@contextlib.contextmanager
def _stop_after(step):
    """Sends this process SIGTERM when it has logged this update."""
    write = metrics.Writer.write

    def write_and_stop(self, at, values):
        write(self, at, values)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Writer, "write", write_and_stop)
        yield


def test_another_mesh_resumes_where_the_first_stopped(reference, tmp_path):
    with _stop_after(15), pytest.raises(Stopped):
        train_jax.run(config(mesh={"data": 2, "fsdp": 2, "tensor": 2}), tmp_path)
    train_jax.run(config(mesh={"data": 8}), tmp_path)
    for mine, theirs in zip(metric_rows(tmp_path), metric_rows(reference[0]), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-5, atol=1e-5, err_msg=key)
    weights = [trained_weights.load_weights(folder / "checkpoints")[0] for folder in (tmp_path, reference[0])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *weights)


def test_a_running_trainer_holds_only_batches_in_flight(tmp_path, monkeypatch):
    def write(self, at, values):
        if at == 3:
            live.extend(x for x in jax.live_arrays() if x.shape[:1] == (80,) and id(x) not in before)

    live: list[jax.Array] = []
    before = {id(x) for x in jax.live_arrays()}  # what other tests hold
    monkeypatch.setattr(metrics.Writer, "write", write)
    train_jax.run(config(steps=4, data={"batch_size": 80}, evals={}), tmp_path)
    # The batch of the update that was logged, and two that are prefetched: x, z, and the counts of replaced samples.
    assert 3 <= len(live) <= 9
    assert all(x.sharding.shard_shape(x.shape)[0] == 10 for x in live), "each split over the devices"


def test_a_run_directory_of_another_model_is_refused(reference):
    with pytest.raises(ConfigError, match=r"another run: config.model\.\w+ is .* in the saved config and .* in this one"):
        train_jax.run(config(model={"width": 8}), reference[0])


def test_a_finished_run_is_not_trained_further(reference):
    before = metric_rows(reference[0])
    train_jax.run(config(), reference[0])
    assert metric_rows(reference[0]) == before


def test_nan_in_the_loss_ends_the_run_with_advice_and_keeps_the_checkpoints(tmp_path, monkeypatch):
    def poisoned(c, workdir):
        def loss(params, extra, batch, rng, step):
            value, aux = toy_task.loss(params, extra, batch, rng, step)
            return jax.numpy.where(step >= 12, jax.numpy.nan, value), aux

        return dataclasses.replace(original(c, workdir), loss=loss)

    original = toy_task.make
    monkeypatch.setattr(toy_task, "make", poisoned)
    with pytest.raises(FloatingPointError, match=r"checkpoint of step 10 is intact.*Lower config\.optim\.lr"):
        train_jax.run(config(optim={"max_skipped": 5}, checkpoint={"every": 10}), tmp_path)
    assert (tmp_path / "checkpoints" / "10").is_dir()
    rows = metric_rows(tmp_path)
    assert [row["skipped"] for row in rows] == [0] * 12 + [1, 2, 3, 4, 5]


def test_a_failed_evaluation_loses_no_updates(reference, tmp_path, monkeypatch):
    def failing(c, workdir):
        def evaluator(options, context):
            def evaluate(params, extra):
                raise OSError("the evaluation's pictures are gone")

            return evaluate

        return dataclasses.replace(original(c, workdir), evaluators={"norm": evaluator})

    original = toy_task.make
    with monkeypatch.context() as patch:
        patch.setattr(toy_task, "make", failing)
        with pytest.raises(OSError, match="pictures are gone"):
            train_jax.run(config(checkpoint={"every": 1000}), tmp_path)
    assert (tmp_path / "checkpoints" / "20").is_dir()
    train_jax.run(config(), tmp_path)
    assert [row for row in metric_rows(tmp_path) if row["step"] > 20] == [
        row for row in metric_rows(reference[0]) if row["step"] > 20
    ]


def test_unreadable_data_loses_no_updates(tmp_path, monkeypatch):
    def failing(c, workdir):
        def example(record, rng):
            read_ids.append(record["id"])
            if len(read_ids) > 200:
                raise BrokenSample("gone")
            return toy_task.example(record, rng)

        return dataclasses.replace(original(c, workdir), example=example)

    read_ids: list[str] = []
    original = toy_task.make
    monkeypatch.setattr(toy_task, "make", failing)
    with pytest.raises(DataError, match="broken samples in a row"):
        train_jax.run(config(checkpoint={"every": 1000}, steps=400), tmp_path)
    last = metric_rows(tmp_path)[-1]["step"]
    assert last >= 1 and (tmp_path / "checkpoints" / str(last)).is_dir()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": {"batch_size": 12}}, "multiple of 8"),
        ({"mesh": {"data": 3}}, "3 does not divide 8"),
        ({"optim": {"nmae": "sgd"}}, "did you mean config.optim.name"),
        ({"data": {"source": "no-such-set"}}, "no-such-set"),
    ],
)
def test_mistakes_leave_no_run_directory(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train_jax.run(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_many_skipped_updates_between_two_logs_end_the_run(tmp_path, monkeypatch):
    def poisoned(c, workdir):
        def loss(params, extra, batch, rng, step):
            value, aux = toy_task.loss(params, extra, batch, rng, step)
            return jax.numpy.where((step >= 12) & (step < 18), jax.numpy.nan, value), aux

        return dataclasses.replace(original(c, workdir), loss=loss)

    original = toy_task.make
    monkeypatch.setattr(toy_task, "make", poisoned)
    with pytest.raises(FloatingPointError, match="the last 5 updates up to step 17"):
        train_jax.run(config(optim={"max_skipped": 5}, log_every=40), tmp_path)


def test_another_batch_size_resumes_at_the_same_example(tmp_path):
    def position(step):
        with contextlib.closing(ocp.training.Checkpointer(tmp_path / "checkpoints")) as checkpoints:
            return checkpoints.metadata(step).custom_metadata["position"]

    train_jax.run(config(steps=4, evals={}), tmp_path)
    assert position(4) == {"examples": 64}
    train_jax.run(config(steps=6, evals={}, data={"batch_size": 32}), tmp_path)
    assert position(6) == {"examples": 128}


def test_no_more_than_two_updates_are_under_way():
    lockstep = Lockstep(sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))
    finished = []
    for step in range(5):
        if (metrics := lockstep.wait_for_oldest()) is not None:
            finished.append(int(metrics["step"]))
        lockstep.record_update({"step": jax.numpy.asarray(step)})
    assert finished == [0, 1, 2], "before the third starts, the first is done"


def test_artifacts_are_written_with_their_hashes(tmp_path, monkeypatch):
    def make(c, workdir):
        return dataclasses.replace(original(c, workdir), artifacts={"tokenizer.json": "{}"})

    original = toy_task.make
    monkeypatch.setattr(toy_task, "make", make)
    train_jax.run(config(steps=3), tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    hashes = json.loads((tmp_path / "artifacts.json").read_text())
    assert hashes == {"tokenizer.json": hashlib.sha256(b"{}").hexdigest()}


def test_a_trace_is_written_on_request(tmp_path):
    train_jax.run(config(steps=16), tmp_path, profile=True)
    assert list((tmp_path / "profile").glob("**/*.xplane.pb"))


def test_config_dict_from_python_is_enough(tmp_path):
    history = train_jax.run(ConfigDict(config(steps=3, log_every=3).to_dict()), tmp_path)
    assert [row["step"] for row in history if "loss" in row] == [3]


def test_a_step_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="the compiled step takes 0.0 GiB .* free: lower config.data.batch_size"):
        train_jax.run(config(steps=10), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
