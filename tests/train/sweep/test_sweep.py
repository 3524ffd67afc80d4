"""Sweeps from the command line: one after the other, beside each other and together; failures, stops and kills."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drive_toy import metric_rows

from train_jax import ownership, runs, sweep
from train_jax.errors import ConfigError
from train_jax.runs import read_run
from train_jax.sweep import command, launch, trials

CONFIG = str(Path(__file__).with_name("sweep_toy.py"))
FOLDERS = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[3])])
SEARCH = ["--search", "optuna", "--trials", "2", "--minimize", "loss"]
GRID = ["--grid", "optim.lr=1e-2,1e-3", "--seeds", "2"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", FOLDERS)
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as the runs that a user starts


def start(workdir, *words):
    program = [sys.executable, "-m", "train_jax", "sweep", f"--config={CONFIG}", f"--workdir={workdir}", *words]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Four runs that were trained together, in this process."""
    workdir = tmp_path_factory.mktemp("together")
    assert command.main([f"--config={CONFIG}", f"--workdir={workdir}", *GRID, "--together"]) == 0
    return workdir


def test_a_sweep_in_processes_equals_one_together_and_is_not_repeated(together, tmp_path, capsys):
    words = [f"--config={CONFIG}", f"--workdir={tmp_path}", *GRID, "--where", "seed == 0 or optim.lr > 1e-2"]
    words += ["--grid", "optim.clip=1.0"]  # another option, whose value is that of the others
    assert command.main([*words, "--jobs", "2"]) == 0
    points = {"lr=0.01,clip=1,seed=0": "lr=0.01,seed=0", "lr=0.001,clip=1,seed=0": "lr=0.001,seed=0"}
    for name, other in points.items():
        rows, expected = metric_rows(tmp_path / name), metric_rows(together / other)
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for row, reference in zip(rows, expected, strict=True):
            assert row == pytest.approx(reference, rel=1e-5, abs=1e-6)
    before = [(tmp_path / name / "log.txt").read_bytes() for name in points]
    assert command.main(words) == 0
    assert before == [(tmp_path / name / "log.txt").read_bytes() for name in points]
    assert capsys.readouterr().out.count("finished") == 4
    record = json.loads((tmp_path / sweep.sweep.FILE).read_text())
    assert record["points"]["lr=0.01,clip=1,seed=0"]["command"].startswith("train-jax --config=")


def test_the_table_and_the_summary_of_a_sweep(together):
    frame = runs.table(together)
    assert list(frame.status) == ["finished"] * 4 and {"optim.lr", "seed"} <= set(frame.columns)
    assert list(runs.summary(frame, "loss", by=["optim.lr"])["seeds"]) == [2, 2]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys):
    words = [f"--config={CONFIG}", f"--workdir={tmp_path}", "--grid", "optim.lr=1e-2,1e30", "--config.optim.clip=0"]
    words += ["--config.optim.players={}", "--config.optim.name=sgd"]
    assert command.main([*words, "--together"]) == 1
    good, bad = read_run(tmp_path / "lr=0.01"), read_run(tmp_path / "lr=1e+30")
    assert good.status == "finished" and bad.status == "failed" and "non-finite" in bad.error
    assert bad.checkpoint  # saved when it failed, as a run made alone
    assert "non-finite" in capsys.readouterr().err
    # Failed runs are left alone, in a process of its own the run fails in the same way.
    assert command.main([*words, "--together"]) == 1
    assert command.main([*words, "--retry-failed"]) == 1
    again = read_run(tmp_path / "lr=1e+30")
    assert again.status == "failed" and "non-finite" in again.error and (tmp_path / "lr=1e+30" / "log.txt").exists()


def test_a_dry_run_tells_costs_and_writes_nothing(together, tmp_path, capsys):
    assert command.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'new'}", *GRID, "--dry-run"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6 and table[1].split() == ["lr=0.01,seed=0", "empty", "20", "320"]
    assert not (tmp_path / "new").exists()
    assert command.main([f"--config={CONFIG}", f"--workdir={together}", *GRID, "--config.steps=40", "--dry-run"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[1:4] == ["unfinished", "20", "320"] or table[1].split()[1:4] == ["finished", "20", "320"]
    assert table[-1].split()[:3] == ["total", "4", "due"] and table[-1].split()[-1].endswith("s")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--together", "--jobs", "2"], "one process"),
        (["--jobs", "0"], "at least 1"),
        (["--trials", "3"], "without --search"),
        (["--search", "optuna"], "needs --trials"),
        (["--search", "optuna", "--trials", "2", "--minimize", "loss", "--retry-failed"], "--retry-failed cannot be"),
        (["--together", "--config.mesh.data=2"], "runs that train together have one device each"),
        (["--slurm", "timeout_min=3"], "without --launcher=slurm"),
        (["--grid", "optim.lrr=1"], "lrr"),
        ([*SEARCH, "--range", "optim.lr=0.1:1", "--range", "optim.lr=0.2:1"], "--range optim.lr occurs twice"),
        ([*SEARCH, "--range", "optim.lr=0.1:1", "--grid", "optim.lr=0.1"], "both choose it"),
    ],
)
def test_contradictions_are_refused(tmp_path, capsys, words, message):
    assert command.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'new'}", *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_directory_of_another_experiment_is_refused(together):
    with pytest.raises(ConfigError, match="holds another run"):
        sweep.run(CONFIG, together, overrides={"model.width": 8}, grid={"optim.lr": [1e-2, 1e-3]}, seeds=2)


def test_finished_runs_of_other_options_are_refused(together):
    points = {"grid": {"optim.lr": [1e-2, 1e-3]}, "seeds": 2}
    with pytest.raises(ConfigError, match=r"has finished with other options: config\.optim\.clip was 1\.0 and is 0\.5"):
        sweep.run(CONFIG, together, overrides={"optim.clip": 0.5}, **points)
    assert len(sweep.run(CONFIG, together, overrides={"log_every": 10}, **points)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--together"], ["--jobs", "2"]])
def test_a_killed_sweep_goes_on_to_the_same_results(together, tmp_path, words):
    slow = ["--config.data.threads=1", "--config.steps=20", "--config.log_every=5"]
    process = start(tmp_path, *GRID, *words, *slow)
    deadline = time.monotonic() + 120
    while not any(folder.name.isdigit() for folder in tmp_path.glob("*/checkpoints/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(folder.joinpath("owner.json").exists() for folder in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.5)  # runs in processes of their own stop when the sweep has ended
        if words == ["--together"]:
            break
    again = start(tmp_path, *GRID, *words, *slow)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    for folder in together.glob("lr=*"):
        rows, expected = metric_rows(tmp_path / folder.name), metric_rows(folder)
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for row, reference in zip(rows, expected, strict=True):
            assert row == pytest.approx(reference, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_signal_stops_a_sweep_with_its_runs_saved(tmp_path):
    process = start(tmp_path, *GRID, "--jobs", "2", "--config.steps=100000")
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*/metrics.jsonl"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "the same command goes on" in output
    assert {read_run(folder.parent).status for folder in tmp_path.glob("*/checkpoints")} == {"unfinished"}


def test_gpus_are_divided_between_processes():
    assert launch.divide_gpus(2, []) == [{}, {}]
    assert launch.divide_gpus(2, ["0", "1", "2", "3", "4"]) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]  # fmt: skip
    shares = launch.divide_gpus(3, ["4", "5"])
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "5", "4"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.45"}


def test_slurm_jobs_run_the_same_processes(tmp_path):
    pytest.importorskip("submitit")
    points = sweep.points.make_points(CONFIG, overrides=["--config.steps=2"], grid={"optim.lr": [1e-2]})
    one = sweep.Sweep(CONFIG, tmp_path, points, overrides=["--config.steps=2"])
    (job,) = one.submit(points, 1, {"cluster": "local", "timeout_min": 5})
    assert job.result() == 0
    assert read_run(tmp_path / "lr=0.01").status == "finished"
    with pytest.raises(ConfigError, match="launcher=slurm"):
        one.submit(points, 1, {"cluster": "local", "no_such_parameter": 5})


@pytest.mark.slow
def test_a_search_resumes_and_finds_the_best(tmp_path, capsys):
    pytest.importorskip("optuna")
    words = [f"--config={CONFIG}", f"--workdir={tmp_path}", "--search", "optuna", "--minimize", "loss", "--config.steps=2"]
    words += ["--range", "optim.lr=1e-3:1e-1:log", "--grid", "ema.decay=0.0,0.9"]
    misspelt = [word if word != "loss" else "losss" for word in words]
    assert command.main([*misspelt, "--trials", "2"]) == 2
    assert "trial-0000 has no metric 'losss', but loss" in capsys.readouterr().err
    assert [folder.name for folder in tmp_path.glob("trial-*")] == ["trial-0000"]
    assert command.main([*words, "--trials", "2", "--jobs", "2"]) == 0
    assert command.main([*words, "--trials", "3"]) == 0
    trials = [read_run(folder) for folder in sorted(tmp_path.glob("trial-*"))]
    assert [run.status for run in trials] == ["finished"] * 3
    assert all(1e-3 <= run.config["optim"]["lr"] <= 1e-1 for run in trials)
    assert len({run.config["optim"]["lr"] for run in trials}) == 3, "a repeated command goes on, and does not repeat itself"
    best = min(run.history.last("loss") for run in trials)
    assert f"best of 3 trials: loss {best:.5g} with" in capsys.readouterr().out.splitlines()[-1]
    with_other_goal = [word if word != "--minimize" else "--maximize" for word in words]
    with_other_range = [word.removesuffix(":log") for word in words]
    for others in (with_other_goal, with_other_range, [*words, "--config.optim.weight_decay=0.1"]):
        assert command.main([*others, "--trials", "3"]) == 2
    assert "config.optim.weight_decay was 0.0 and is 0.1" in capsys.readouterr().err


def test_a_slurm_job_whose_time_ends_is_submitted_again(tmp_path):
    pytest.importorskip("submitit")
    process = launch.Process(["--config=missing"], tmp_path, tmp_path / "programs")
    assert process() == 2
    again = pickle.loads(pickle.dumps(process.checkpoint()))
    assert again.function() == 2


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path):
    points = sweep.points.make_points(CONFIG, grid={"optim.lr": [1e-2, 1e-3]})
    both = sweep.Sweep(CONFIG, tmp_path, points)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        owner = {"host": "here", "machine": ownership._machine(), "pid": other.pid, "token": "", "beat": 0}
        folder = both.folder(points[0])
        folder.mkdir()
        (folder / "owner.json").write_text(json.dumps(owner))
        assert both.list_due() == points[1:]
        assert both.make_process(points[0])() == 0  # at once
        launch.record_failure(folder, "is being trained in")
        assert os.listdir(folder) == ["owner.json"]
        other.stdin.close()
    assert both.list_due() == points  # its owner has ended


def test_trials_divide_the_gpus_and_keep_the_options_of_the_search(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    shares = []

    def start(self, stop, share):
        shares.append(share.get("CUDA_VISIBLE_DEVICES", "all"))
        while len(set(shares)) < 2:  # until the other trial has started
            time.sleep(0.01)
        return 1

    monkeypatch.setattr(launch, "list_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(launch.Process, "__call__", start)

    def make(choices):
        arguments = {"ranges": {}, "metric": "loss", "goal": "minimize"}
        return trials.Study(CONFIG, tmp_path, choices={"optim.lr": choices}, **arguments)

    study = make([1e-2, 1e-3])
    study.run(2, jobs=2)
    assert sorted(shares) == ["0", "1"]
    study.study.ask()  # killed before its options were chosen
    study.run(1)
    assert len(shares) == 2
    study.run(3)
    assert len(shares) == 3 and study.study.trials[2].params.keys() == {"optim.lr"}
    with pytest.raises(ConfigError, match="other options"):
        make([1e-2, 1e-4])


def test_a_run_that_cannot_be_started_does_not_stop_the_others(tmp_path):
    (tmp_path / "file").write_text("")
    folders = {"first": tmp_path / "file" / "first", "second": tmp_path / "second"}
    codes = {}
    words = ["--config=missing"]
    processes = {name: launch.Process(words, folder, tmp_path / "programs") for name, folder in folders.items()}
    launch.run_processes(processes, 1, codes.__setitem__)
    assert codes == {"first": 1, "second": 2} and "error" in read_run(tmp_path / "second").error


@pytest.mark.parametrize(
    ("code", "output", "cause"),
    [
        (-9, "broken images: errors in report.txt\nbye\n", "killed by signal 9; before it: broken images: errors in"),
        (-15, "bye\n", "killed by signal 15"),
        (1, "ValueError: no\nbye\n", "ValueError: no"),
        (3, "", "exit code 3"),
    ],
)
def test_the_cause_of_a_failure_is_its_signal_or_its_last_error(code, output, cause, tmp_path):
    (tmp_path / "log.txt").write_text(output)
    assert launch.read_error(tmp_path / "log.txt", 0, code).startswith(cause)
