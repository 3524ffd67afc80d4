"""The loaded DALL-E: what its run directory holds, prompts of all kinds, and what is refused.

How it samples, scores and completes pictures: tests/vqgan/stage2.
"""

import json
import shutil

import jax
import numpy as np
import pytest

import dalle_jax
from tests import hub_server, model_cards
from tests.trees import count_bytes
from train_jax.errors import LoadError, UserError

PROMPTS = ["the digit three", "a handwritten 7", "zero"]


def test_a_run_is_loaded_with_what_it_holds(tiny, trained):
    assert isinstance(trained, dalle_jax.Dalle) and trained.name.endswith("(step 4)") and len(trained.fingerprint) == 64
    assert trained.grid == (4, 4) and trained.size == 16
    assert dalle_jax.load(tiny[1], step=4).fingerprint == trained.fingerprint
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    assert trained.score(PROMPTS, image).shape == (1, 3)
    drawing = trained.draw(PROMPTS, 2, progress=False)
    assert isinstance(drawing, dalle_jax.Drawing) and drawing.images.shape == (3, 2, 16, 16, 3)


def test_prompts_that_are_empty_strange_or_too_long(trained, caplog):
    images = trained.generate(["", "☃ ∑ 漢字 \x00", "a " * 50], progress=False)
    assert images.shape == (3, 1, 16, 16, 3)
    assert "longer than the 12 tokens this model reads and were cut" in caplog.text


def test_prompts_are_a_list_of_texts(trained):
    with pytest.raises(TypeError, match=r"a list, not one str: write \[value\]"):
        trained.generate("a red circle")
    with pytest.raises(ValueError, match="a list of strings"):
        trained.generate(["a red circle", 3])


@pytest.fixture
def copied(tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_another_kind_or_with_other_files_is_refused(copied):
    (copied / "tokenizer.json").write_text((copied / "tokenizer.json").read_text() + " ")
    with pytest.raises(LoadError, match="wrong tokenizer for the weights"):
        dalle_jax.load(copied)
    (copied / "config.json").write_text('{"task": "clip_jax.task"}')
    with pytest.raises(LoadError, match="is a run of 'clip_jax.task', not of a DALL-E"):
        dalle_jax.load(copied)


def test_guidance_is_refused_to_a_run_that_dropped_no_captions(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"condition_dropout": 0.0}))
    with pytest.raises(ValueError, match="guidance = 1.5: .* train with condition_dropout above 0"):
        dalle_jax.load(copied).draw(PROMPTS, guidance=1.5)


def test_in_bfloat16_both_stages_are_those_of_float32(tiny, trained):
    short = dalle_jax.load(tiny[1], dtype="bfloat16")
    assert (short.dtype, short.vqgan.compute.dtype) == ("bfloat16", "bfloat16") and short.fingerprint == trained.fingerprint
    assert (trained.dtype, trained.vqgan.compute.dtype) == ("float32", "float32"), "auto on a CPU"
    tokens, codes = trained.condition.encode(PROMPTS), np.random.default_rng(0).integers(0, 12, (3, 4, 4))
    expected, actual = trained.logits(tokens, codes), short.logits(tokens, codes)
    for exact, rounded in zip(expected, actual, strict=True):
        assert rounded.dtype == np.float32
        assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()
    for path, x in jax.tree_util.tree_leaves_with_path(short.variables):
        assert x.dtype == ("bfloat16" if path[-1].key in ("kernel", "tokens") else "float32")
    assert count_bytes(short.variables) < 0.6 * count_bytes(trained.variables)
    assert short.draw(PROMPTS, progress=False).images.shape == (3, 1, 16, 16, 3)


def test_a_pushed_run_is_opened_by_the_code_of_its_card(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hub_server.serve(monkeypatch) as hub:
        opened = model_cards.push_and_open(tiny[1], hub, tmp_path / "run", "dalle_jax")
        assert opened["dalle"].fingerprint == trained.fingerprint
    assert "E. Alpaydin" in (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(UserError, match="a loaded Dalle cannot be uploaded"):
        dalle_jax.push(trained, "org/name")
