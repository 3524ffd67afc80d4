"""A DALL-E draws the start of a painting."""

import dataclasses

import numpy as np
import pytest

from train_jax.errors import ConfigError
from vqgan_jax.guided import metadata, options, painting, second_stages
from vqgan_jax.guided.prompts import parse_scene
from vqgan_jax.stage2.condition import ClassCondition


@pytest.fixture
def opened(second_stage, monkeypatch) -> dict:
    """Opens the second stage at any path; returns the one that is opened, which a test may replace."""
    models = {"a run": second_stage}
    monkeypatch.setattr(second_stages, "load", lambda path, name, dtype: models[path])
    return models


def make_painter(vq, clip, prompts, **changes) -> painting.Painter:
    resolved = options.resolve({"init_dalle": "a run", **changes})
    return painting.Painter(vq, clip, [painting.Job(parse_scene(text), seed, resolved) for text, seed in prompts])


def test_a_painting_starts_from_the_drawing_most_similar_to_its_text(vq, clip, second_stage, opened):
    prompts = [("noise:-0.1 | a blue moon | a red star", 5), ("a red star", 5), ("a red star", 6)]
    painter = make_painter(vq, clip, prompts, init_best=4, init_temperature=0.9, init_guidance=2.0)
    for row, (text, seed) in enumerate([("a blue moon", 5), ("a red star", 5), ("a red star", 6)]):
        [images] = second_stage.generate([text], 4, seed=seed, temperature=0.9, guidance=2.0, progress=False)
        cosines = clip.encode_image(images) @ clip.encode_text([text])[0]
        best = images[np.argmax(cosines)]
        np.testing.assert_array_equal(painter.problem.init_images[row], np.float32(best) / 255)
        expected = painter.drawer.from_codes(vq.encode(best[None]))[0]
        np.testing.assert_array_equal(painter.problem.init_latents[row], expected)
    assert make_painter(vq, clip, prompts[:1], size=(24, 32)).problem.init_images.shape == (1, 24, 32, 3), "resized"


def test_what_cannot_draw_a_start(vq, clip, tiny, second_stage, opened):
    with pytest.raises(ConfigError, match="init_dalle = a run: each prompt must have a text of positive weight"):
        make_painter(vq, clip, [("a red star:-1", 0)])
    opened["a run"] = dataclasses.replace(second_stage, condition=ClassCondition(3))
    with pytest.raises(ConfigError, match="init_dalle = a run: the condition is a class; it must be a DALL-E"):
        make_painter(vq, clip, [("a red star", 0)])
    condition = dataclasses.replace(second_stage.condition, droppable=False)
    opened["a run"] = dataclasses.replace(second_stage, condition=condition)
    with pytest.raises(ConfigError, match="init_dalle = a run: guidance = 2.* was not trained without"):
        make_painter(vq, clip, [("a red star", 0)], init_guidance=2.0)


def test_only_runs_of_second_stages_open(tiny, tmp_path):
    for path in (tmp_path, tiny[1]):
        with pytest.raises(ConfigError, match="init_dalle = .*: it must be the run directory of a prior or of a DALL-E"):
            second_stages.load(str(path), "init_dalle", "float32")


def test_a_drawn_start_is_known_by_its_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    hashes = metadata.hash_files(options.resolve({"init_dalle": str(tmp_path)}), [])
    assert hashes == {str(tmp_path): metadata.hash_run(str(tmp_path))}
