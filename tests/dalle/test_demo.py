"""The demo on tiny runs: its sheet, its part of the page."""

import dataclasses
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dalle_jax import demo
from train_jax.datasets.shapes import demo as shown

pytestmark = pytest.mark.slow


def _judge(image, prompt):
    return {"correct": "green" in prompt}


def test_it_leaves_a_sheet_and_a_part_of_the_page(tiny, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny[1], tmp_path / "dalle")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "2-vqgan.html").write_text("<h1>before</h1>")
    monkeypatch.setattr(demo, "NUM_SAMPLES", 4)
    monkeypatch.setattr(demo, "NUM_BEST", 3)
    monkeypatch.setattr(shown, "PROMPTS", shown.PROMPTS[:2])
    draw = demo.Dalle.draw

    def without_clip(self, *arguments, rerank, **options):
        assert rerank == tmp_path / "clip"
        return draw(self, *arguments, rerank="likelihood", **options)

    monkeypatch.setattr(demo.Dalle, "draw", without_clip)
    opened = demo.sources.from_config

    def with_judge(*options):
        return dataclasses.replace(opened(*options), judge=_judge)

    monkeypatch.setattr(demo.sources, "from_config", with_judge)
    config = ConfigDict(tiny[0].to_dict())
    path = config.vqgan.path
    monkeypatch.setattr(demo, "VQGAN", path)
    results = demo.run(shown, config, tmp_path)
    assert results.keys() == {"test/bits_per_code", "test/bits_per_text_token", "test/unigram_bits_per_code"}
    with Image.open(tmp_path / "drawings.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((0x15, 0x80, 0x3D), (0xB9, 0x1C, 0x1C)):  # right, and wrong
        assert (np.abs(pixels - colour).sum(1) < 12).sum() > 100
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.index("<h1>before</h1>") < page.index("DALL-E on shapes") and 'src="data:image/png' in page
    assert "drawings.png" in capsys.readouterr().out
