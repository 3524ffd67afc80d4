"""The notebook runs from top to bottom, on tiny runs, and shows what it promises."""

import pytest
from ml_collections import ConfigDict

import train_jax
import vqgan_jax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny, tmp_path_factory, run_notebook):
    prior = tmp_path_factory.mktemp("notebook") / "prior"
    config = {
        "task": "vqgan_jax.prior.task",
        "steps": 1,
        "vqgan": {"path": str(tiny[1])},
        "data": tiny[0].data.to_dict(),
    }
    train_jax.run(ConfigDict(config | {"model": {"classes": 80, "width": 8, "depth": 1, "heads": 1}}), prior)
    return run_notebook("vqgan.ipynb", DATA="shapes", VQGAN_RUN=str(tiny[1]), PRIOR_RUN=str(prior))


def test_the_notebook_loads_the_run_of_its_variable(outputs, tiny):
    text, _ = outputs("vqgan_jax.load(")
    assert f"{tiny[1]} (step 4)" in text and vqgan_jax.load(tiny[1]).fingerprint[:16] in text


@pytest.mark.parametrize(
    "word, count",
    [("show([pictures[:12]", 1), ("psnr.mean()", 2), ("perplexity", 1), ("frequent[0]", 1), ("blend", 1), ("load_prior", 1),
     ("temperature=t", 1), ("keep=keep", 1)],
)  # fmt: skip
def test_it_shows_what_it_talks_about(outputs, shown, word, count):
    shown(outputs, word, count)
