"""What is found in a folder of runs, and what is said of what is not."""

import json
import shlex

import pytest

from multimodal_jax.serve.runs import KINDS, find_runs
from train_jax import config_file
from train_jax.errors import UserError


def test_runs_are_found_by_their_task(folder, monkeypatch):
    monkeypatch.chdir(folder)
    runs = find_runs("runs")
    paths = {kind: [str(path) for path in found] for kind, found in runs.paths.items()}
    assert paths == {
        "clip": ["runs/clip"], "index": ["runs/index"], "vqgan": ["runs/vqgan"], "dalle": ["runs/dalle"],
        "unclip": ["runs/unclip/decoder"],
    }  # fmt: skip
    assert runs.missing(tuple(KINDS)) == [] and runs.damaged == ()
    named = find_runs("runs", {"clip": ["clip:vit-b-32-openai", "hf:some/clip"], "unclip": ()})
    assert [str(path) for path in named.paths["clip"]] == ["runs/clip", "clip:vit-b-32-openai", "hf:some/clip"]
    assert named.paths["unclip"] == runs.paths["unclip"]
    assert find_runs("runs/clip").paths["clip"] == (find_runs("runs/clip").folder,)


@pytest.mark.parametrize(("source", "data"), [(None, "shapes"), ("2 emoji/64 | emoji/64 where tone=", "emoji")])
def test_the_commands_of_what_is_missing_name_configs_that_exist(source, data, tmp_path):
    if source:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "config.json").write_text(json.dumps({"task": "vqgan_jax.task", "data": {"source": source}}))
    runs = find_runs(tmp_path)
    assert runs.missing(("clip", "dalle")) == ["clip", "dalle"]
    assert f"--config=unclip/decoder_{data} " in runs.commands("unclip")[1]
    for kind in KINDS:
        for line in runs.commands(kind):
            program, *words = shlex.split(line)
            assert program in ("train-jax", "clip-jax") and str(tmp_path) in line
            for word in words:
                if word.startswith("--config="):
                    config_file.load(word.partition("=")[2])


def test_damaged_runs_are_named_and_left_out(tmp_path):
    for name, text in {"broken": "{", "other": json.dumps({"task": "mine.task"}), "list": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "meta.json").write_text("{}")
    runs = find_runs(tmp_path)
    assert not any(runs.paths.values())
    assert sorted(sentence.split("/")[-2] for sentence in runs.damaged if "config.json" in sentence) == ["broken", "list"]
    assert any("index" in sentence for sentence in runs.damaged)


def test_a_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no such folder; make one with multimodal-jax demo"):
        find_runs(tmp_path / "none")
