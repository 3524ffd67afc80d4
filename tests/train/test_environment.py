"""The environment of a run: git's commit of a clone, and none elsewhere; a damaged record of starts."""

import ast
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import optax
import pytest
from packaging.requirements import Requirement

from train_jax import environment
from train_jax.environment import code_version

SETUP = Path(__file__).resolve().parents[2] / "setup.py"


def git(folder, *words):
    name = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    run = subprocess.run(["git", "-C", str(folder), *name, *words], check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with a package of one file, outside of any other."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    code_version.cache_clear()
    file = tmp_path / "clone" / "package" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\n")
    git(tmp_path / "clone", "init", "-q")
    git(tmp_path / "clone", "add", ".")
    git(tmp_path / "clone", "commit", "-q", "-m", "first")
    yield file
    code_version.cache_clear()


def test_the_commit_of_a_clone(clone):
    commit = git(clone.parent, "rev-parse", "HEAD")
    (clone.parent / "untracked.py").write_text("")
    assert code_version(clone) == {"commit": commit, "dirty": False}
    clone.write_text("x = 2\n")
    code_version.cache_clear()
    assert code_version(clone) == {"commit": commit, "dirty": True}


def test_code_that_is_in_no_clone_has_no_commit(clone, tmp_path):
    installed = clone.parent.parent / ".venv" / "module.py"  # in the folder of a clone, but not a part of it
    installed.parent.mkdir()
    for file in (installed, tmp_path / "module.py"):
        file.write_text("")
        assert code_version(file) is None


def test_without_git_there_is_no_commit(clone, monkeypatch):
    monkeypatch.setenv("PATH", str(clone.parent))
    assert code_version(clone) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": 3}', '{"other": []}'])
def test_a_damaged_record_of_starts_is_begun_anew(tmp_path, caplog, content):
    file = tmp_path / "environment.json"
    file.write_text(content)
    assert environment._read_starts(file) == [] and "its starts are forgotten" in caplog.text
    file.write_text(json.dumps({"starts": [{"time": 1}]}))
    assert environment._read_starts(file) == [{"time": 1}]


def test_versions_are_those_of_all_requirements(monkeypatch):
    lists = [node.value for node in ast.walk(ast.parse(SETUP.read_text())) if getattr(node, "arg", "") == "install_requires"]
    required = {Requirement(line).name for line in ast.literal_eval(lists[0])}
    environment.describe_versions.cache_clear()
    versions = environment.describe_versions()
    assert required | {"python", "jaxlib", "multimodal-jax"} <= versions.keys() and "gradio" not in versions
    assert versions["optax"] == optax.__version__ and versions["python"] == platform.python_version()

    def find_none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", find_none)
    environment.describe_versions.cache_clear()
    assert environment.describe_versions()["jax"] == versions["jax"]
    environment.describe_versions.cache_clear()
