"""Pictures side by side, and PNGs that tell how they were made."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from train_jax import pictures
from train_jax.errors import UserError


def plain(value: int, height: int = 2, width: int = 3) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_a_grid_holds_every_picture_with_white_between_them():
    grid = pictures.image_grid([[plain(10), plain(20)], [plain(30)]])
    expected = np.full((2 + 2 + 2, 3 + 2 + 3), 255, np.uint8)
    expected[:2, :3], expected[:2, 5:], expected[4:, :3] = 10, 20, 30
    np.testing.assert_array_equal(grid, np.repeat(expected[..., None], 3, axis=-1))


def test_small_pictures_are_enlarged_for_people():
    rows = [[plain(0, 32, 32), plain(200, 32, 32)]]
    np.testing.assert_array_equal(pictures.enlarged_grid(rows), pictures.image_grid(rows).repeat(4, 0).repeat(4, 1))
    assert pictures.enlarged_grid([[plain(0, 200, 100)]]).size == (100, 200)


def test_a_picture_as_text_has_two_pixels_a_character():
    image = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    lines = pictures.draw_as_text(image, 80).splitlines()
    colours = [re.findall(r"\[38;2;(.*?);48;2;(.*?)m▀", line) for line in lines]  # of each character above and below
    shown = [[[pair[half].split(";") for pair in line] for half in (0, 1)] for line in colours]
    np.testing.assert_array_equal(np.array(shown, int).reshape(4, 3, 3), image)
    assert all(line.endswith("\x1b[0m") for line in lines)
    narrow = pictures.draw_as_text(np.full((40, 20, 3), 7, np.uint8), 5).splitlines()
    assert [line.count("▀") for line in narrow] == [5] * 5


@pytest.mark.parametrize("count, columns, lengths", [(5, None, [3, 2]), (9, None, [3, 3, 3]), (5, 2, [2, 2, 1])])
def test_pictures_in_rows(count, columns, lengths):
    rows = pictures.split_into_rows([plain(i) for i in range(count)], columns)
    assert [len(row) for row in rows] == lengths
    assert [picture[0, 0, 0] for row in rows for picture in row] == list(range(count))


def test_a_png_tells_how_it_was_made(tmp_path):
    about = {"prompt": "ein grüner Würfel", "seed": 3}
    pictures.save_png(Image.fromarray(plain(7)), tmp_path / "a.png", "multimodal", about)
    assert json.loads(pictures.read_png_text(tmp_path / "a.png", "multimodal")) == about
    assert pictures.read_png_text(tmp_path / "a.png", "other") is None
    np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), plain(7))


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.png is not a readable PNG"):
        pictures.read_png_text(tmp_path / "a.png", "multimodal")
    with pytest.raises(FileNotFoundError):
        pictures.read_png_text(tmp_path / "b.png", "multimodal")


def test_a_folder_holds_what_the_same_command_wrote(tmp_path):
    folder = pictures.PictureFolder(tmp_path / "many", "multimodal", {"seed": 3, "top_p": None})
    assert not folder.holds("a/b.png", prompt="x")
    folder.save(plain(7), "a/b.png", prompt="x")
    assert folder.holds("a/b.png", prompt="x")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "many/a/b.png")), plain(7))
    assert [path.name for path in (tmp_path / "many/a").iterdir()] == ["b.png"], "no unfinished file stays"
    other = pictures.PictureFolder(tmp_path / "many", "multimodal", {"seed": 4, "top_p": None})
    for wrong, fields in ((folder, {"prompt": "y"}), (other, {"prompt": "x"})):
        with pytest.raises(UserError, match="b.png was written by another command"):
            wrong.holds("a/b.png", **fields)
