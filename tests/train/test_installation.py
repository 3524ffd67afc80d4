"""Another project's `clip_jax` in the same environment is told by a sentence; in another folder it does not matter."""

import argparse
import importlib.metadata
import sys

import pytest

import clip_jax
from train_jax import __main__ as entry
from train_jax import command, installation
from train_jax.errors import UserError


@pytest.fixture
def install_other(monkeypatch):
    """`install_other(folder)`: metadata of the distribution `clip-jax` in `folder`, which Python looks through."""

    def install(folder):
        metadata = folder / "clip_jax-0.0.6.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: clip-jax\nVersion: 0.0.6\n")
        monkeypatch.syspath_prepend(folder)

    installation.check_import_name.cache_clear()
    yield install
    installation.check_import_name.cache_clear()


def test_nothing_is_said_without_it():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("clip-jax")
    installation.check_import_name()


def test_beside_ours_in_another_folder_it_does_not_matter(install_other, tmp_path):
    install_other(tmp_path)
    installation.check_import_name()


def test_in_one_folder_every_command_and_load_say_what_to_do(install_other, tmp_path, monkeypatch, capsys):
    (tmp_path / "clip_jax").mkdir()
    (tmp_path / "clip_jax" / "__init__.py").touch()
    install_other(tmp_path)
    monkeypatch.delitem(sys.modules, "clip_jax")  # what is imported next lies first on the path, as if installed last
    sentence = f"{tmp_path / 'clip_jax'} has files of clip-jax 0.0.6, a project of other authors"
    with pytest.raises(UserError, match="pip uninstall clip-jax, then install this project again") as caught:
        installation.check_import_name()
    assert sentence in str(caught.value)
    with pytest.raises(UserError, match="clip-jax 0.0.6"):
        clip_jax.load("anything")
    with pytest.raises(SystemExit, match="error: .*clip-jax 0.0.6"):
        entry.cli(["--config=clip/shapes", "--workdir=runs/x"])
    arguments = argparse.Namespace(command="classify", run=lambda _: 0)
    assert command.run_command("clip-jax", arguments) == 2
    assert "clip-jax classify: error: " in (told := capsys.readouterr().err) and sentence in told
