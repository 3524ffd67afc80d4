"""The command `multimodal-jax`: the demos in a row, and a page that cannot be opened."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from multimodal_jax import __main__, demo


@pytest.mark.parametrize(("codes", "expected"), [((0, 0, 0, 0), 0), ((0, 130), 130), ((2,), 2)])
def test_the_demo_runs_its_parts_until_one_fails(codes, expected, monkeypatch, capsys):
    commands, left = [], list(codes)

    def run(command, check):
        assert not check
        commands.append(command)
        return SimpleNamespace(returncode=left.pop(0))

    monkeypatch.setattr(subprocess, "run", run)
    assert __main__.main(["demo", "--data", "emoji", "--workdir", "there"]) == expected
    options = ["--data", "emoji", "--workdir", "there"]
    assert commands == [[sys.executable, "-m", part, *options] for part in list(demo.PARTS)[: len(codes)]]
    announced = [line for line in capsys.readouterr().out.splitlines() if line.startswith("part ")]
    assert [line[:11] for line in announced] == [f"part {i + 1} of 4" for i in range(len(codes))]
    assert "(about 91 minutes, of 219 from here): there/search.png, there/index.html" in announced[0]
    assert "minutes" not in "".join(announced[3:])  # not measured


def test_what_keeps_the_page_from_opening_is_a_sentence(tmp_path, monkeypatch, capsys):
    assert __main__.main(["serve", str(tmp_path / "none")]) == 2
    assert "no such folder; make one with multimodal-jax demo" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert __main__.main(["serve", str(tmp_path)]) == 2
    assert "pip install 'multimodal-jax[app]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    assert __main__.main(["serve", str(tmp_path), "--clip", "clip:none"]) == 2  # before the page opens
    assert "clip:none: no known model has this name. The names are clip:vit-b-32-openai" in capsys.readouterr().err
