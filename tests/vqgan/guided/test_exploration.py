"""Sheets of all combinations of options, from the command line, a file, and a sheet itself."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

import clip_jax
from train_jax.errors import ConfigError
from vqgan_jax import cli, guided
from vqgan_jax.guided import exploration, metadata, painting

NONE = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
FEW = {"steps": 1, "cuts": 2, "size": (16, 16)} | NONE
FLAGS = ["--steps", "1", "--cuts", "2", "--size", "16x16", *(word for name in NONE for word in (f"--{name}", "0"))]
GRID = {"lr": [0.05, 5.0], "drawer": ["pixel", "fourier"], "average": [0.0, 0.5]}


@pytest.fixture
def from_clip(clip, monkeypatch):
    monkeypatch.setattr(clip_jax, "load", lambda path, dtype="auto": clip)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_combinations_that_share_a_program_are_painted_at_once(clip, monkeypatch):
    batches = []
    run = painting.Painter.run
    monkeypatch.setattr(painting.Painter, "run", lambda self, *args: batches.append(len(self.jobs)) or run(self, *args))
    found = exploration.explore(None, clip, ["a star", "a ring"], GRID, seed=3, progress=False, **FEW)
    assert batches == [8, 8] and found.images.shape == (2, 8, 16, 16, 3) and found.losses.shape == (2, 8)
    assert found.cells[3] == FEW | {"lr": 0.05, "drawer": "fourier", "average": 0.5}
    alone = guided.paint(None, clip, "a ring", seed=3, progress=False, **found.cells[6])
    np.testing.assert_allclose(found.images[1, 6].astype(int), alone.images[0], atol=1)
    assert found.losses[1, 6] == pytest.approx(alone.losses[0, -1], rel=1e-5)
    rows = exploration.make_rows(found, GRID)
    assert rows == [[(p, c + i) for i in range(4)] for p in range(2) for c in (0, 4)]
    assert exploration.make_rows(found, {"lr": range(8)}) == [[(p, c) for c in range(8)] for p in range(2)]
    for grid, message in (
        ({"stepz": [1]}, "stepz is not an option of a grid: did you mean steps"),
        ({"size": [(8, 8)]}, "the pictures of a sheet have one size"),
        ({"lr": 3}, "it must be a list of values"),
    ):
        with pytest.raises(ConfigError, match=message):
            exploration.combine(grid)


def test_usual_values():
    assert exploration.usual_values("lr") == [0.05, 0.1, 0.2] and exploration.usual_values("cuts") == [16, 32, 64]
    assert exploration.usual_values("cut_min") == [0, 0.3, 0.6] and exploration.usual_values("remat") == [False, True]
    assert exploration.usual_values("flip") == [0.25, 0.5, 1.0] and exploration.usual_values("palette_weight") == [0.5, 1, 2]
    drawers = exploration.usual_values("drawer")
    assert drawers[:2] == ["pixel", "grid"] and not {"vqgan", "unclip"} & set(drawers)
    assert exploration.usual_values("drawer", with_vqgan=True) == ["vqgan", *drawers]
    assert set(exploration.usual_values("preset", with_vqgan=True)) - set(exploration.usual_values("preset")) == {"mask"}


def test_a_sheet_and_its_commands(from_clip, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = ["paint", "--explore", "a star", "--clip", "c", *FLAGS, "--seed", "3"]
    assert cli.main([*words, "--grid", "drawer=pixel,fourier", "--grid", "lr=0.05,5", "--out", str(out)]) == 0
    listed = capsys.readouterr().out
    assert listed == (tmp_path / "sheet.txt").read_text()
    assert pixels(out).shape == (8 * (16 + 2 + 16), 8 * (16 + 2 + 16), 3)
    name, command = re.findall(r"# (row .*): loss .*\n(.*)\n", listed)[1]
    assert name == "row 1, column 2" and "--drawer pixel --lr 5.0 --out" in command
    assert cli.main(shlex.split(command)[1:]) == 0, "the command of a cell paints it"
    cell = pixels(out)[:: 8, :: 8][:16, 18:]
    np.testing.assert_allclose(pixels(tmp_path / "sheet-1-2.png").astype(int), cell.astype(int), atol=1)
    assert cli.main(["paint", "--repeat", str(out), "--out", str(tmp_path / "again.png")]) == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(out))
    assert metadata.read(tmp_path / "again.png") == metadata.read(out)
    # From a file: prompts and a grid.
    text = "prompts: [a star]\nclip: c\nseed: 3\nsteps: 1\ncuts: 2\nsize: 16x16\n"
    text += "".join(f"{name}: 0\n" for name in NONE) + "grid: {drawer: [pixel, fourier], lr: [5e-2, 5]}\n"
    (tmp_path / "batch.yaml").write_text(text)
    again = str(tmp_path / "file.png")
    assert cli.main(["paint", "--explore", "--config", str(tmp_path / "batch.yaml"), "--out", again]) == 0
    np.testing.assert_array_equal(pixels(again), pixels(out))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--grid", "lr=1,2"], "give both, or neither"),
        (["--explore"], "give both, or neither"),
        (["--explore", "--grid", "lr,smoothness"], "grid smoothness: it has no usual values; write smoothness=VALUE,VALUE"),
        (["--explore", "--grid", "lr,"], "--grid lr,: it must be NAME=VALUE,VALUE, or NAME,NAME"),
        (["--explore", "--grid", "lr,cutmin"], "cutmin is not an option (in --grid): did you mean cut_min?"),
        (["--explore", "--grid", "lr=fast"], "--grid: lr = 'fast'; it must be a number"),
        (["--explore", "--grid", "lr=-1,2"], "lr = -1.0; it must be positive"),
        (["--explore", "--grid", "remat=yes"], "it must be true or false"),
        (["--explore", "--grid", "lr=1,2", "--n", "2"], "one image of each combination: leave out --n"),
        (["--explore", "--grid", "lr=1,2", "--folder", "f"], "--folder applies to one painting"),
        (["--explore", "--config", "grid.yaml"], "it must be a mapping of options to lists of values"),
        (["--explore", "--grid", "lr=1,2", "--grid", "lr=3"], "--grid lr is given twice"),
        (["--explore", "--grid", "lr=1,2", "--lr", "3"], "--lr beside a grid of lr: give only one of them"),
        (["--explore", "--grid", "enlarge=2,3"], "the pictures of a sheet have one size"),
    ],
)
def test_mistakes_are_one_line(from_clip, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text("grid: {lr: 3}")
    assert cli.main(["paint", "a", "--clip", "c", "--drawer", "pixel", *FLAGS, *words, "--out", "a.png"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vqgan-jax paint: error: ") and message in error
