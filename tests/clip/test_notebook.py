"""The notebook runs from top to bottom on a tiny run, and shows its charts and numbers."""

import re

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny, run_notebook):
    return run_notebook("clip.ipynb", DATA="shapes", CLIP_RUN=str(tiny[1]), CLIP_PETS="")


def test_the_notebook_loads_the_run_of_its_variable(outputs, tiny, trained):
    text, _ = outputs("clip_jax.load")
    assert f"{tiny[1]} (step 3)" in text and trained.fingerprint[:16] in text


@pytest.mark.parametrize(
    "word, count",
    [("show(pictures[:8]", 1), ("right.barh", 1), ("for sentence in", 4), ("inset_axes", 1), ("records_novel[:8]", 1)],
)
def test_it_shows_charts_and_grids(outputs, shown, word, count):
    shown(outputs, word, count, width=200, contrast=5)


def test_its_numbers_are_those_of_the_model(outputs, trained):
    text, _ = outputs("true_labels")
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert len(shares) == 4 and all(0 <= share <= 100 for share in shares)
    text, _ = outputs('"scale"')
    scale = np.exp(float(trained.variables["params"]["logit_scale"]))
    assert float(text.split()[-1]) == pytest.approx(scale, abs=0.01)


def test_nothing_is_downloaded_unless_asked_for(outputs):
    text, _ = outputs("CLIP_PETS")
    assert text == "set CLIP_PETS=1 to grade the model on Oxford-IIIT Pets\n"
