"""The commands of `dalle-jax` for unCLIP, called as a user does."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dalle_jax
from dalle_jax import cli
from dalle_jax.unclip import loading

QUICK = ("--steps", 3)


def call(*arguments) -> int:
    return cli.main([str(a) for a in arguments])


def metadata(path) -> dict:
    with Image.open(path) as picture:
        return json.loads(picture.text["dalle"])


@pytest.fixture(scope="module")
def unclip(tiny_decoder):
    return dalle_jax.load_unclip(tiny_decoder[1])


@pytest.fixture(autouse=True)
def loaded_once(tiny_decoder, unclip, monkeypatch):
    """Calls share the compiled programs of one loaded model."""
    load = loading.load_unclip
    monkeypatch.setattr(
        loading,
        "load_unclip",
        lambda path, **parts: unclip if Path(path) == tiny_decoder[1] else load(path, **parts),
    )


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "shape.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)).save(file)
    return file


def test_imagine_writes_a_grid_that_tells_how_it_was_made(tiny_decoder, unclip, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("zero\n\nnine\n")
    common = ("imagine", f"@{tmp_path / 'prompts.txt'}", "--model", tiny_decoder[1], *QUICK, "--prior-steps", 3, "--n", 2)
    common = (*common, "--seed", 7)
    assert call(*common, "--out", tmp_path / "grid.png") == 0
    images = unclip.imagine(["zero", "nine"], 2, seed=7, steps=3, prior_steps=3, progress=False)
    text = metadata(tmp_path / "grid.png")
    assert text["model"] == unclip.fingerprint and text["prompts"] == ["zero", "nine"] and text["command"] == "imagine"
    assert (text["seed"], text["steps"], text["prior_guidance"], text["samples"]) == (7, 3, 1.0, [[0, 1], [0, 1]])
    folder = tmp_path / "each"
    assert call(*common, "--folder", folder) == 0
    (folder / "0001-0001.png").unlink()
    assert call(*common, "--folder", folder, "--offload") == 0, "goes on"
    for prompt in range(2):
        for sample in range(2):
            actual = np.asarray(Image.open(folder / f"{prompt:04d}-{sample:04d}.png"), int)
            assert abs(actual - images[prompt, sample]).max() <= 1
    capsys.readouterr()
    assert call(*common, "--folder", folder, "--guidance", 2) == 2
    assert "was written by another command" in capsys.readouterr().err


def test_images_are_varied_interpolated_and_edited(tiny_decoder, unclip, picture, tmp_path):
    model = ("--model", tiny_decoder[1], *QUICK)
    assert call("vary", picture, *model, "--n", 3, "--folder", tmp_path / "v", "--out", tmp_path / "v.png") == 0
    expected = unclip.vary(picture, 3, steps=3)
    for index in range(3):
        actual = np.asarray(Image.open(tmp_path / "v" / f"{index:04d}.png"))
        np.testing.assert_array_equal(actual, expected[index])
    text = metadata(tmp_path / "v.png")
    assert (text["command"], text["image"], text["eta"], text["n"]) == ("vary", "shape.png", 1.0, 3)
    assert call("between", picture, picture, *model, "--n", 3, "--out", tmp_path / "b.png") == 0
    assert metadata(tmp_path / "b.png")["last"] == "shape.png"
    changes = ("the digit one", "the digit two", "--strength", "0.5")
    assert call("edit", picture, *changes, *model, "--out", tmp_path / "e.png") == 0
    assert metadata(tmp_path / "e.png")["strength"] == [0.5]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("imagine", "zero"), "name --out FILE for a grid"),
        (("imagine", "zero", "--out", "x.png", "--best", 2), "--best 2 needs a ranking"),
        (("imagine", "zero", "--out", "x.png", "--steps", 1), "steps = 1 must be an integer in"),
        (("vary", "PICTURE", "--out", "x.jpg"), "the grid is a PNG"),
        (("vary", "PICTURE", "--out", "x.png", "--eta", 2), "eta = 2.0 must be in"),
        (("edit", "PICTURE", "a", "b", "--out", "x.png", "--strength", "much"), "write fractions separated by commas"),
        (("vary", "missing.png", "--out", "x.png"), "missing.png"),
    ],
)
def test_mistakes_are_one_line_and_code_2(tiny_decoder, picture, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = [picture if a == "PICTURE" else a for a in arguments]
    assert call(*arguments, "--model", tiny_decoder[1]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
