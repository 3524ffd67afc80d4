"""The demo on a tiny run: its grid of images, its part of the page; it continues an existing run."""

import shutil

import numpy as np
import pytest
from PIL import Image

from train_jax.datasets.shapes import demo as shown
from vqgan_jax import demo

pytestmark = pytest.mark.slow


def test_it_leaves_a_sheet_and_a_part_of_the_page(tiny, trained, tmp_path, capsys):
    shutil.copytree(tiny[1], tmp_path / "vqgan")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "1-clip.html").write_text("<h1>before</h1>")
    results = demo.run(shown, tiny[0], tmp_path)
    assert results.keys() == {"test/psnr", "test/ssim", "test/usage", "oracle/same"}
    with Image.open(tmp_path / "reconstructions.png") as sheet:
        grid = np.asarray(sheet)[::3, ::3]
    assert grid.shape == (4 * 18 - 2, 12 * 18 - 2, 3)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.index("<h1>before</h1>") < page.index("VQGAN on shapes") and 'src="data:image/png' in page
    assert f"{results['test/psnr']:8.3f}" in page
    first = grid[:16, :16]
    np.testing.assert_array_equal(grid[18:34, :16], np.round(255 * trained.reconstruct(first[None]))[0])
    assert "16 x 16 -> 8 x 8 codes out of 16" in capsys.readouterr().out
