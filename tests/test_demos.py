"""A demo that is stopped, or whose training is, grades, draws and publishes nothing, and says so to `make`."""

import importlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from train_jax.data import mixture
from train_jax.errors import Stopped

TRAINING = {"clip_jax.demo": "clip", "vqgan_jax.demo": "vqgan", "dalle_jax.demo": "dalle"}


@pytest.mark.parametrize("module", TRAINING)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_publishes_nothing(module, number, tmp_path, monkeypatch, capsys):
    def stopped(config, workdir, **_):
        workdir.mkdir(parents=True)
        raise Stopped(179, number)

    monkeypatch.setattr("train_jax.run", stopped, raising=False)
    if module == "dalle_jax.demo":  # needs a CLIP to rank its drawings
        (tmp_path / "clip").mkdir()
        (tmp_path / "clip" / "config.json").write_text('{"task": "clip_jax.task"}')
    code = importlib.import_module(module).main(["--workdir", str(tmp_path)])
    assert code == 128 + number
    told = capsys.readouterr()
    assert "stopped after step 179" in told.err and told.out == ""
    assert {path.name for path in tmp_path.iterdir()} - {"clip"} == {TRAINING[module]} - {"clip"}


@pytest.mark.parametrize("module", [*TRAINING, "vqgan_jax.guided.demo"])
def test_an_interrupted_demo_ends_as_one(module, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    demo = importlib.import_module(module)
    monkeypatch.setattr(demo, "run", interrupted)
    assert demo.main(["--workdir", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", TRAINING)
@pytest.mark.parametrize("data", ["shapes", "emoji"])
def test_the_data_choose_what_is_trained_and_shown(module, data, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(importlib.import_module(module), "run", lambda *arguments: begun.append(arguments))
    assert importlib.import_module(module).main(["--workdir", str(tmp_path), "--data", data]) == 0
    [(shown, config, workdir)] = begun
    assert (shown.TITLE, workdir) == (data, tmp_path)
    assert config.task == f"{TRAINING[module]}_jax.task"
    assert all(part.startswith(data) for _, part in mixture.parse(config.data.source))


@pytest.mark.parametrize("module", TRAINING)
@pytest.mark.parametrize("config", ["clip/digits", "dalle/emoji", "vqgan/emoji"])
def test_a_config_of_something_else_is_refused_before_it_trains(module, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module(module), "run", lambda *_: pytest.fail("it has begun"))
    assert importlib.import_module(module).main(["--workdir", str(tmp_path), "--config", config]) == 2
    error = capsys.readouterr().err
    assert f"--config={config} has the task" in error and f"{TRAINING[module]}/demo" in error


def test_dalle_is_not_trained_without_the_clip_that_ranks_its_drawings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train_jax.run", lambda *_: pytest.fail("it has begun"))
    assert importlib.import_module("dalle_jax.demo").main(["--workdir", str(tmp_path)]) == 2
    assert f"{tmp_path / 'clip'}" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["demo", "emoji"])
def test_make_goes_no_further_than_a_stopped_part(target):
    """The recipe itself, its interpreter replaced by a shell that ends as a stopped demo does."""
    root = Path(__file__).resolve().parents[1]
    command = ["make", "--no-print-directory", target, "STAMP=", "RUN=@echo part; exit 143; :"]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and done.stdout == "part\n", done.stderr
