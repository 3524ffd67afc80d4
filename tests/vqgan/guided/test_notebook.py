"""The notebook runs from top to bottom on untrained models, and its cells show their figures."""

import re

import pytest

import clip_jax
import vqgan_jax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(vq, clip, other_clip, tmp_path_factory, run_notebook):
    folder = tmp_path_factory.mktemp("notebook")
    vqgan_jax.save(vq, folder / "vqgan.safetensors")
    clip_jax.save_hf(clip, folder / "clip")
    clip_jax.save_hf(other_clip, folder / "held-out")
    paths = {"VQGAN_RUN": folder / "vqgan.safetensors", "CLIP_RUN": folder / "clip", "HELD_OUT_RUN": folder / "held-out"}
    return run_notebook("vqgan_clip.ipynb", PAINT_STEPS="2", **{name: str(path) for name, path in paths.items()})


def test_models_are_those_of_the_environment(outputs, vq):
    text, _ = outputs("vqgan_jax.load(")
    assert "vqgan.safetensors" in text and vq.fingerprint[:16] in text and "/held-out" in text


@pytest.mark.parametrize(
    "word, count",
    [("painting = guided.paint", 1), ("painting.losses[0], color", 1), ("def cut(", 1), ("by_cuts = {", 2),
     ("plt.subplots(1, 2", 1), ("story = guided.animate", 1)],
)  # fmt: skip
def test_cells_show_their_figures(outputs, shown, word, count):
    shown(outputs, word, count)


def test_two_clips_evaluate_every_setting(outputs):
    text, _ = outputs("def right(")
    # Only lines of the table: JAX may warn of its compilation cache in between.
    rows = [[float(share) for share in re.findall(r"(\d+)%", line)] for line in text.splitlines() if "%" in line]
    assert len(rows) == 8 and all(len(row) == 2 and all(0 <= share <= 100 for share in row) for row in rows)
