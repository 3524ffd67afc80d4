"""The notebook runs from top to bottom, on tiny runs, and shows what it promises."""

from pathlib import Path

import pytest

import dalle_jax
from tests.shared_run import make_shapes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny_decoder, tiny_upsampler, run_notebook):
    make_shapes(Path(tiny_decoder[0].data.data_dir).parent, {"train": 4, "test": 24, "novel": 4})
    variables = {"UNCLIP_RUN": str(tiny_decoder[1]), "UPSAMPLER_RUN": str(tiny_upsampler[1])}
    return run_notebook("unclip.ipynb", DATA="shapes", **variables)


def test_the_notebook_loads_the_runs_of_its_variables(outputs, tiny_decoder, tiny_upsampler):
    text, _ = outputs("dalle_jax.load_unclip(")
    assert f"{tiny_decoder[1]} (step 40)" in text and "16 x 16 pixels" in text
    assert dalle_jax.load_unclip(tiny_decoder[1], upsampler=tiny_upsampler[1]).fingerprint[:16] in text


@pytest.mark.parametrize(
    "word, count",
    [
        ("PROMPTS, DRAWN", 1),
        ("def sweep", 3),
        ("unclip.reconstruct(", 1),
        ("unclip.vary(", 1),
        ("unclip.between(", 1),
        ("unclip.edit(", 1),
        ("unclip.principal(", 1),
        ("right.any(1)", 1),
    ],
)
def test_it_shows_what_it_talks_about(outputs, shown, word, count):
    shown(outputs, word, count, width=4 * 16)  # as many pixels as the images have


def test_it_prints_its_measurements(outputs):
    assert outputs("unclip.embed(pictures)")[0].count("cosine with the true image") == 3
    assert "of one sample" in outputs("right.any(1)")[0]
