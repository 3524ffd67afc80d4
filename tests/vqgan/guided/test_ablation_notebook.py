"""The notebook of the ablation paints its settings with untrained models, and says of each what its paintings have shown."""

import re

import pytest

import clip_jax
import vqgan_jax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(vq, clip, tmp_path_factory, run_notebook):
    folder = tmp_path_factory.mktemp("notebook")
    vqgan_jax.save(vq, folder / "vqgan.safetensors")
    clip_jax.save_hf(clip, folder / "clip")
    return run_notebook(
        "ablation_painting.ipynb", FAST="1", VQGAN_RUN=str(folder / "vqgan.safetensors"), CLIP_RUN=str(folder / "clip")
    )


def test_it_paints_by_the_models_of_the_environment(outputs, vq):
    assert vq.fingerprint[:16] in outputs("vqgan_jax.load(")[0]
    assert "3 settings x 6 prompts x 1 seeds of 2 steps, in 2 programs" in outputs("paint_many(")[0]


@pytest.mark.parametrize("word", ["image_grid([", "axes.hlines"])
def test_it_shows_its_figures(outputs, shown, word):
    shown(outputs, word, 1)


def test_its_sentences_tell_what_the_oracle_and_the_guide_found(outputs):
    text = outputs("def describe(")[0]
    first = re.search(r"reads what was asked for in (\d+) % .* colour in (\d+) %, .* the prompt in (\d+) %\.", text)
    objects, colours, _ = map(int, first.groups())
    assert objects <= colours, "an object that is read has its colour"
    for change in ("a learning rate of 0.03 instead of 0.1", "1 cutout instead of 4"):
        changes = re.findall(rf"{change} changes it by ([+-]\d+\.\d) points in a single seed", text)
        assert len(changes) == 2 and all(-100 <= float(points) <= 100 for points in changes)
