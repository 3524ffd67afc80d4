"""The demo on untrained models: its sheet of pictures, and its part of the page."""

import numpy as np
import pytest
from PIL import Image

import clip_jax
import vqgan_jax
from train_jax.datasets.shapes import demo as shown
from vqgan_jax.guided import demo, second_stages

pytestmark = pytest.mark.slow


def test_it_leaves_a_sheet_and_a_part_of_the_page(vq, clip, second_stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vqgan_jax, "load", lambda path: {"vqgan": vq}[path.name], raising=False)
    monkeypatch.setattr(clip_jax, "load", lambda path: {"clip": clip}[path.name], raising=False)
    monkeypatch.setattr(second_stages, "load", lambda path, name, dtype: second_stage)
    monkeypatch.setattr(shown, "PAINTED", shown.PAINTED[:2])
    monkeypatch.setattr(type(second_stage.condition), "texts", shown.PAINTED)
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "2-vqgan.html").write_text("<h1>before</h1>")
    painting = demo.run(shown, tmp_path, steps=20, cuts=2, progress=False)
    with Image.open(tmp_path / "painting.png") as image:
        sheet = np.asarray(image)
    assert (sheet[:, : demo.MARGIN] < 128).any(), "prompts stand beside their pictures"
    sheet = sheet[::3, demo.MARGIN :: 3]
    np.testing.assert_array_equal(sheet[18:34, :16], painting.snapshots[1, 0])
    np.testing.assert_array_equal(sheet[18:34, 18:], painting.images[1])
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.index("<h1>before</h1>") < page.index("Painted by the gradient") and 'src="data:image/png' in page
    assert "a red star" in capsys.readouterr().out


def test_missing_runs_are_one_line(tmp_path, capsys):
    assert demo.main(["--workdir", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
