"""The notebook runs from top to bottom, on tiny runs, and shows what it promises."""

import pytest
from ml_collections import ConfigDict

import dalle_jax
import train_jax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny, tmp_path_factory, run_notebook):
    clip = tmp_path_factory.mktemp("notebook") / "clip"
    config = ConfigDict({"task": "clip_jax.task", "steps": 1, "data": tiny[0].data.to_dict()})
    config.tokenizer = {"vocab_size": 560}
    config.model = {"embed_dim": 8, "image": {"size": 16, "patch": 8, "width": 8, "depth": 1, "heads": 1}}
    config.model.text = {"context_length": 16, "width": 8, "depth": 1, "heads": 1}
    train_jax.run(config, clip)
    return run_notebook("dalle.ipynb", DATA="shapes", DALLE_RUN=str(tiny[1]), CLIP_RUN=str(clip))


def test_the_notebook_loads_the_run_of_its_variable(outputs, tiny):
    text, _ = outputs("dalle_jax.load(")
    assert f"{tiny[1]} (step 4)" in text and dalle_jax.load(tiny[1]).fingerprint[:16] in text


@pytest.mark.parametrize(
    "word, count", [("PROMPTS, DRAWN", 1), ("def sweep", 3), ("def complete", 1), ("drawn_right", 2), ("nearest = [", 1)]
)
def test_it_shows_what_it_talks_about(outputs, shown, word, count):
    shown(outputs, word, count)


def test_it_prints_its_measurements(outputs):
    assert "held-out pictures are given their own label" in outputs("dalle.score(")[0]
    assert "16: " in outputs("drawn_right")[0]
    assert "distances 0." in outputs("nearest = [")[0]
