"""Mirrors of metrics, with stand-ins for the packages that keep what they are given."""

import contextlib
import json
import logging
import sys
import types

import pytest

from train_jax import config as config_lib
from train_jax import metrics, mirrors
from train_jax.errors import ConfigError, UserError


class Run:
    """A run of a package, which keeps what is logged."""

    def __init__(self, options: dict):
        self.options, self.rows, self.definitions, self.finished = options, [], [], False

    def define_metric(self, *names, **options) -> None:
        self.definitions.append((*names, options))

    def log(self, values: dict, step: int | None = None) -> None:
        if "broken" in values:
            raise ConnectionError("no service")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def package(request, monkeypatch):
    """A stand-in; `package.runs` are the runs in the order of their beginning."""
    module = types.ModuleType(request.param)
    module.runs = []
    module.init = lambda **options: module.runs.append(Run(options)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv(f"{request.param.upper()}_PROJECT", raising=False)
    return module


def write(workdir, name: str, *rows: tuple[int, dict], start_step: int = 0) -> None:
    opened = mirrors.start((name,), workdir, {"steps": 4, "optim": {"lr": 0.1}})
    writer = metrics.Writer(workdir, total_steps=4, start_step=start_step, mirrors=opened)
    with contextlib.closing(writer):
        for step, row in rows:
            writer.write(step, row)


def test_metrics_are_mirrored_and_a_resumed_run_goes_on_in_the_same_one(package, tmp_path, monkeypatch):
    workdir, name = tmp_path / "sweep" / "run", package.__name__
    workdir.mkdir(parents=True)
    write(workdir, name, (1, {"loss": 2.0}), (2, {"loss": 1.0, "test/top1": 0.5}))
    write(workdir, name, (2, {"loss": 1.0}), start_step=1)
    write(tmp_path / "sweep" / "run", name)
    first, second, third = package.runs
    assert first.options == second.options == third.options and all(run.finished for run in package.runs)
    assert first.options["project"] == "sweep" and first.options["resume"] == "allow"
    assert first.options["config"] == {"steps": 4, "optim": {"lr": 0.1}}
    identity = json.loads((workdir / "mirrors.json").read_text())["id"]
    assert first.options["id" if name == "wandb" else "name"] == f"run-{identity}"
    if name == "wandb":
        assert first.rows == [(None, {"loss": 2.0, "step": 1}), (None, {"loss": 1.0, "test/top1": 0.5, "step": 2})]
        assert second.rows == [(None, {"loss": 1.0, "step": 2})]
        assert first.definitions == [("*", {"step_metric": "step"})]
    else:
        assert first.rows == [(1, {"loss": 2.0}), (2, {"loss": 1.0, "test/top1": 0.5})]
        assert second.rows == [(2, {"loss": 1.0})]
    # Another run of the same name is another one there; the project may be named.
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", name)
    assert package.runs[3].options["project"] == "mine"
    assert package.runs[3].options != first.options | {"project": "mine"}


def test_a_mirror_that_fails_ends_no_training(package, tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        write(tmp_path, package.__name__, (1, {"loss": 2.0}), (2, {"broken": 1.0}), (3, {"loss": 1.0}))
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3]
    assert len(package.runs[0].rows) == 1
    assert f"{package.__name__} takes no more metrics, which metrics.jsonl has (ConnectionError: no service)" in caplog.text

    def refuse(**options):
        raise RuntimeError("no key:\nlog in")

    package.init = refuse
    with pytest.raises(UserError, match=rf"{package.__name__} cannot start \(RuntimeError: no key: log in\)"):
        mirrors.start((package.__name__,), tmp_path, {})


def test_a_missing_package_and_an_unknown_mirror_are_named_before_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"config.mirrors = .*wandb.*; pip install 'multimodal-jax\[wandb\]'"):
        mirrors.import_packages(("wandb",))
    options = {"task": "x", "steps": 1, "data": {"source": "digits"}, "mirrors": ("comet",)}
    with pytest.raises(ConfigError, match=r"config.mirrors = \('comet',\); it must be some of wandb, trackio"):
        config_lib.TrainOptions.parse(options, "")
