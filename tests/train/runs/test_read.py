"""Reading of run directories: finished, unfinished, failed, damaged and empty ones, without an exception and without JAX."""

import json
import math
import os
import subprocess
import sys

import pytest
from written_runs import add_checkpoint, write_config, write_run

from train_jax import metrics
from train_jax.data.errors import DataError
from train_jax.runs.read import distinguish, find_runs, read_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "a", {"loss": [3.0, 2.0, "nan"]}, {"optim": {"lr": 0.1}})


def test_a_finished_run(run):
    read = read_run(run)
    assert (read.name, read.status, read.error) == ("a", "finished", None)
    assert (read.step, read.steps, read.checkpoint) == (30, 30, 30)
    assert read.config["optim"] == {"lr": 0.1}
    assert [row["loss"] for row in read.history[:2]] == [3.0, 2.0] and math.isnan(read.history.last("loss"))
    assert read.environment["starts"][0]["peak_bytes"] == 3 * 2**20


@pytest.mark.parametrize(
    ("steps", "checkpoint"),
    [(31, 30), (30, 20), (40, 40)],
    ids=["fewer updates than config.steps", "without the last checkpoint", "without the last metrics"],
)
def test_an_unfinished_run(tmp_path, steps, checkpoint):
    read = read_run(write_run(tmp_path / "a", {"loss": [3, 2, 1]}, steps=steps, checkpoint=checkpoint))
    assert (read.status, read.step, read.checkpoint, read.error) == ("unfinished", 30, checkpoint, None)


def test_only_complete_checkpoints_count(tmp_path):
    run = write_run(tmp_path / "a", {"loss": [3, 2, 1]}, checkpoint=20)
    for name in ("30.orbax-checkpoint-tmp", "damaged-30", "30"):
        (run / "checkpoints" / name).mkdir()  # the last is empty: its content was removed
    assert (read_run(run).status, read_run(run).checkpoint) == ("unfinished", 20)


def test_without_metrics_the_step_is_that_of_the_checkpoint(tmp_path):
    write_config(tmp_path, {"steps": 100})
    assert (read_run(tmp_path).status, read_run(tmp_path).step, read_run(tmp_path).checkpoint) == ("unfinished", 0, None)
    add_checkpoint(tmp_path, 40)
    assert (read_run(tmp_path).status, read_run(tmp_path).step) == ("unfinished", 40)


def test_a_failed_run_tells_its_error(run):
    (run / "failure.json").write_text(json.dumps({"error": "ConfigError: no", "step": 30, "time": 1.0}))
    assert (read_run(run).status, read_run(run).error, read_run(run).step) == ("failed", "ConfigError: no", 30)
    (run / "failure.json").write_text('{"err')
    assert read_run(run).status == "failed" and "failure.json is no JSON object" in read_run(run).error
    (run / "failure.json").unlink()
    assert read_run(run).status == "finished"


def test_a_run_that_failed_before_it_began(tmp_path):
    (tmp_path / "failure.json").write_text(json.dumps({"error": "LoadError: no weights", "step": 0, "time": 1.0}))
    read = read_run(tmp_path)
    assert (read.status, read.error, read.config, read.history) == ("failed", "LoadError: no weights", {}, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"steps": 30', "config.json is no JSON object"),
        ("config.json", "[1]", "config.json is no JSON object (it holds a list)"),
        ("config.json", "[" * 100_000, "config.json is no JSON object"),
        ("config.json", b"\xff\xfe\x00", "config.json is no JSON object"),
        ("config.json", '{"steps": "many"}', "config.json has no number of steps"),
        ("config.json", None, "config.json is missing"),
        ("config.json", "folder", "config.json cannot be read"),
        ("metrics.jsonl", "folder", "metrics.jsonl cannot be read"),
    ],
)
def test_damaged_files(run, name, content, message):
    file = run / name
    file.unlink()
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = read_run(run)
    assert read.status == "damaged" and message in read.error
    assert len(read.history) == (0 if name == "metrics.jsonl" else 3)


def test_readable_lines_between_damaged_ones_are_kept(run):
    first, *others = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    damaged = ["\n", '{"loss": 1}\n', '{"step": 1e999}\n', "[]\n", f"{'[' * 100_000}\n", '{"step": 40, "lo']
    (run / "metrics.jsonl").write_text("".join([first, *damaged[:5], *others, damaged[5]]))
    read = read_run(run)
    assert [row["step"] for row in read.history] == [10, 20, 30]
    assert read.status == "damaged"
    assert read.error.startswith("metrics.jsonl, line 2 is no row of metrics") and read.error.endswith("and 4 more")
    with pytest.raises(DataError, match="line 2"):
        metrics.read(run)


def test_an_unfinished_last_line_is_no_damage(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert (read_run(run).status, read_run(run).step) == ("finished", 30)


def test_a_damaged_environment_leaves_the_run_finished(run):
    (run / "environment.json").write_text("{")
    read = read_run(run)
    assert (read.status, read.environment) == ("finished", {}) and "environment.json" in read.error


def test_no_run(tmp_path):
    assert [(read_run(path).status, read_run(path).error) for path in (tmp_path, tmp_path / "none")] == [
        ("empty", "the directory holds no run"),
        ("empty", "no such directory"),
    ]
    file = tmp_path / "file"
    file.write_text("")
    assert read_run(file).status == "empty"
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)  # before its config was written
    assert read_run(tmp_path / "killed").status == "empty"


def test_runs_are_found_in_folders_and_by_globs(tmp_path, run, monkeypatch):
    for name in ("lr/0", "lr/1", "wd/deep/0"):
        write_run(tmp_path / name, {"loss": [1]})
    write_run(tmp_path / "lr/0/tokenizer", {"loss": [1]})  # a run below a run is a part of it
    write_config(tmp_path / "weights", {"model_type": "clip"})  # the config of something else
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)

    def names(*paths):
        return [run.name for run in find_runs(list(paths))]

    assert names(tmp_path) == [f"{tmp_path.name}/a", "lr/0", "lr/1", "deep/0"]
    assert names("lr") == names("lr/*") == ["0", "1"]
    assert names("lr/1", "lr", str(tmp_path / "lr" / "1")) == ["1", "0"], "each once, in the order of the paths"
    assert [run.status for run in find_runs(["a", "nothing-*", "weights"])] == ["finished", "empty", "damaged"]
    assert [run.name for run in find_runs(".")] == [f"{tmp_path.name}/a", "lr/0", "lr/1", "deep/0"]
    assert distinguish([read_run("a"), read_run(tmp_path / "a")]) == [read_run(tmp_path / "a")]


def test_links_to_an_ancestor_end_the_search(tmp_path, run):
    os.symlink(tmp_path, tmp_path / "loop")
    assert [run.name for run in find_runs(tmp_path)] == ["a"]


def test_reading_imports_neither_jax_nor_pandas():
    code = "import sys, train_jax.runs; train_jax.runs.read_run; import train_jax.runs.command, train_jax.__main__"
    code += "; print(*({'jax', 'orbax', 'flax', 'pandas', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
