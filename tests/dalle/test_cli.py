"""`dalle-jax`, called as a user does."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_jax import cli, dalle
from train_jax.pictures import PictureFolder


def call(*arguments) -> int:
    return cli.main([str(a) for a in arguments])


def metadata(path) -> dict:
    with Image.open(path) as picture:
        return json.loads(picture.text["dalle"])


@pytest.fixture(autouse=True)
def loaded_once(tiny, trained, monkeypatch):
    """Calls share the compiled programs of one loaded model."""
    load = dalle.load

    def load_once(path, dtype, vqgan):
        return trained if Path(path) == tiny[1] else load(path, dtype=dtype, vqgan=vqgan)

    monkeypatch.setattr(dalle, "load", load_once)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)).save(file)
    return file


def test_generate_writes_a_grid_that_tells_how_it_was_made(tiny, trained, tmp_path, capsys):
    out = tmp_path / "grid.png"
    options = ("--n", 5, "--seed", 7, "--top-p", 0.9, "--guidance", 1.5)
    assert call("generate", "the digit three", "--model", tiny[1], "--out", out, *options) == 0
    assert "wrote" in capsys.readouterr().err
    images = trained.draw(["the digit three"], 5, seed=7, top_p=0.9, guidance=1.5, progress=False).images[0]
    with Image.open(out) as sheet:  # 3 columns, 2 rows, 8 times as large, lines between
        assert sheet.size == (8 * (3 * 16 + 2 * 2), 8 * (2 * 16 + 2))
        np.testing.assert_array_equal(np.asarray(sheet)[: 8 * 16 : 8, : 8 * 16 : 8], images[0])
    text = metadata(out)
    assert text["model"] == trained.fingerprint and text["dtype"] == "float32" and text["prompts"] == ["the digit three"]
    assert (text["seed"], text["top_p"], text["guidance"], text["samples"]) == (7, 0.9, 1.5, [[0, 1, 2, 3, 4]])


def test_generate_writes_each_best_picture_and_previews(tiny, trained, tmp_path):
    (tmp_path / "prompts.txt").write_text("zero\n\nnine\n")
    folder = tmp_path / "each"
    code = call(
        "generate", f"@{tmp_path / 'prompts.txt'}", "--model", tiny[1], "--out", tmp_path / "g.png", "--n", 4,
        "--rerank", "likelihood", "--best", 2, "--folder", folder, "--preview", tmp_path / "p.png",
    )  # fmt: skip
    assert code == 0 and (tmp_path / "p.png").is_file()
    ranked = trained.draw(["zero", "nine"], 4, rerank="likelihood", best=2, progress=False)
    names = [f"{p:04d}-{s:04d}.png" for p in range(2) for s in ranked.samples[p]]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    with Image.open(folder / names[0]) as best:
        np.testing.assert_array_equal(np.asarray(best), ranked.images[0, 0])
    text = metadata(folder / names[2])
    assert text["prompt"] == "nine" and text["sample"] == ranked.samples[1, 0]


@pytest.mark.parametrize("part", ["top", "bottom", "left", "right", "mask"])
def test_complete_keeps_the_named_part(tiny, trained, picture, tmp_path, part):
    halves = {"top": np.s_[:2], "bottom": np.s_[2:], "left": np.s_[:, :2], "right": np.s_[:, 2:]}
    keep = np.zeros((4, 4), bool)
    keep[halves.get(part, np.s_[1, 2])] = True
    if part == "mask":
        part = tmp_path / "mask.png"
        Image.fromarray(np.kron(255 * keep.astype(np.uint8), np.ones((5, 5), np.uint8))).save(part)
    out = tmp_path / "c.png"
    assert call("complete", picture, "three", "--model", tiny[1], "--keep", part, "--n", 1, "--out", out) == 0
    images = trained.draw(["three"], init_image=picture, keep=keep, progress=False).images[0, 0]
    with Image.open(out) as sheet:
        np.testing.assert_array_equal(np.asarray(sheet)[::8, ::8], images)
    assert metadata(out)["init_image"] == "half.png"


def test_a_mask_of_the_pictures_size_is_cropped_with_it(tiny, trained, picture, tmp_path, capsys):
    """The picture is 24 x 20: the model sees its middle 20 columns, so two on each side of the mask are of no use."""
    white = np.zeros((20, 24), np.uint8)
    white[:, :7] = 255  # columns 2 to 6 of the crop: the first of four codes
    Image.fromarray(white).save(tmp_path / "mask.png")
    arguments = ("--model", tiny[1], "--n", 1, "--out", tmp_path / "c.png")
    assert call("complete", picture, "three", "--keep", tmp_path / "mask.png", *arguments) == 0
    keep = np.zeros((4, 4), bool)
    keep[:, 0] = True
    images = trained.draw(["three"], init_image=picture, keep=keep, progress=False).images[0, 0]
    with Image.open(tmp_path / "c.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet)[::8, ::8], images)
    assert len(metadata(tmp_path / "c.png")["init_image_sha256"]) == 64

    Image.fromarray(white[:10]).save(tmp_path / "mask.png")
    assert call("complete", picture, "three", "--keep", tmp_path / "mask.png", *arguments) == 2
    assert "24 x 10 pixels; it must be as large as the image, 24 x 20" in capsys.readouterr().err
    assert call("complete", "", "three", "--keep", "top", *arguments) == 2, "an empty name is no picture"


def test_score_prints_a_table_or_json(tiny, trained, picture, capsys):
    assert call("score", picture, "--model", tiny[1], "--prompts", "three, four") == 0
    table = capsys.readouterr().out.splitlines()
    scores = trained.score(["three", "four"], [picture])[0] / 16
    assert table[0] == str(picture) and sum(line.endswith("*") for line in table) == 1
    assert [float(line.split()[0]) for line in table[1:]] == pytest.approx(scores, abs=1e-4)
    assert call("score", picture, "--model", tiny[1], "--prompts", "three,four", "--json") == 0
    printed = json.loads(capsys.readouterr().out)[str(picture)]
    assert list(printed) == ["three", "four"] and list(printed.values()) == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "a", "--out", "grid.jpg"], "the grid is a PNG; use the suffix .png"),
        (["generate", "a", "--out", "g.png", "--n", "0"], "n = 0 must be an integer, at least 1"),
        (["generate", "a", "--out", "g.png", "--best", "1"], "needs a ranking: set --rerank"),
        (["generate", "a", "--out", "g.png", "--rerank", "nowhere"], "nowhere: no such file"),
        (["generate", "@missing.txt", "--out", "g.png"], "missing.txt: No such file"),
        (["complete", "PICTURE", "--keep", "middle", "--out", "c.png"], "--keep middle: name one of top"),
        (["complete", "missing.png", "--keep", "top", "--out", "c.png"], "missing.png"),
        (["score", "PICTURE", "--prompts", " , "], "--prompts ' , ' has no entries"),
        (["generate", "a", "--out", "no/g.png"], "--out no/g.png: there is no folder no"),
    ],
)
def test_mistakes_are_one_line(tiny, picture, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(picture) if a == "PICTURE" else a for a in arguments]
    assert call(*arguments, "--model", tiny[1]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0] and error[0].startswith(f"dalle-jax {arguments[0]}: error: ")


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    assert call("generate", "a", "--model", tmp_path, "--out", "g.png") == 2
    assert "it holds nothing. load opens run directories" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "complete", "score"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        call(command, "--help")
    assert stop.value.code == 0 and f"dalle-jax {command}" in capsys.readouterr().out


def test_a_killed_command_goes_on_in_its_folder(tiny, trained, tmp_path, monkeypatch, capsys):
    """Three of six pictures are there, and one half written: the others are drawn, and the same as without a break."""
    prompts, folder = ["zero", "nine", "zero"], tmp_path / "many"
    arguments = ("generate", *prompts, "--model", tiny[1], "--n", 2, "--batch-size", 2, "--folder", folder)
    save, saved = PictureFolder.save, []

    def interrupted_save(self, image, name, **fields):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, image, name, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(PictureFolder, "save", interrupted_save)
        assert call(*arguments) == 130
    assert sorted(path.name for path in folder.iterdir()) == saved == ["0000-0000.png", "0000-0001.png", "0001-0000.png"]
    (folder / ".0001-0001.png.part").write_bytes(b"half a picture")
    drawn, draw = [], type(trained).draw

    def counted_draw(self, prompts, *arguments, **options):
        drawn.append(prompts)
        return draw(self, prompts, *arguments, **options)

    monkeypatch.setattr(type(trained), "draw", counted_draw)
    assert call(*arguments, "--out", tmp_path / "grid.png") == 0
    assert drawn == [["nine"], ["zero"]]
    images = {index: drawing.images[0] for index, drawing in trained.stream(prompts, 2, batch_size=2, progress=False)}
    for index, sample in np.ndindex(3, 2):
        name = f"{index:04d}-{sample + 2 * (index == 2):04d}.png"  # a repeated prompt goes on with its samples
        np.testing.assert_array_equal(np.asarray(Image.open(folder / name)), images[index][sample])
    with Image.open(tmp_path / "grid.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet)[: 8 * 16 : 8, 8 * 18 : 8 * 34 : 8], images[0][1])
    drawn.clear()
    assert call(*arguments) == 0 and not drawn, "nothing is left to draw"
    capsys.readouterr()
    assert call(*arguments, "--seed", 1) == 2
    assert "was written by another command, with other options or another model" in capsys.readouterr().err


def test_a_command_needs_an_output(tiny, capsys):
    assert call("generate", "zero", "--model", tiny[1]) == 2
    assert "name --out FILE for a grid, or --folder FOLDER" in capsys.readouterr().err
