"""Drawings that a reader grades; prompts about records."""

import dataclasses
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from dalle_jax import evaluators
from dalle_jax.unclip import decoder_evaluators
from train_jax import config as config_lib
from train_jax import inference, sharding
from train_jax import task as task_lib
from train_jax.data import sources
from train_jax.data.sources import DataError
from train_jax.datasets import digits, shapes
from train_jax.datasets.shapes.shapes_dataset_builder import make
from train_jax.errors import ConfigError
from train_jax.evaluation.evaluators import Context
from vqgan_jax.stage2 import rerank

RECORDS = [
    {"label": 2, "captions": ["a two"]},
    {"label": -1, "captions": ["a one left of a two", "two things"]},
    {"label": 1, "captions": ["a one"]},
]
SOURCE = sources.Source("some", RECORDS, ("zero", "one", "two"))


def options(**changes):
    c = evaluators.EVALUATORS["drawing"].defaults()
    c.update(changes)
    return c


@pytest.mark.parametrize(
    "about, expected",
    [
        ("labels", ["the two", "the one"]),
        ("captions", ["a two", "a one left of a two", "a one"]),
        ("pairs", ["a one left of a two"]),
    ],
)
def test_prompts_are_about_labels_captions_or_pairs(about, expected):
    assert evaluators.collect_prompts(SOURCE, options(about=about, template="the {}")) == expected
    assert evaluators.collect_prompts(SOURCE, options(about=about, template="the {}", prompts=1)) == expected[:1]


def test_templates_have_the_article_that_captions_have():
    assert evaluators.fill_template("a {}", "orange star") == "an orange star"
    assert evaluators.fill_template("a {}", "red star") == "a red star"
    assert evaluators.fill_template("A photo of a {}.", "orange star") == "A photo of an orange star."
    assert evaluators.fill_template("the {}", "orange star") == "the orange star"


def test_prompts_may_name_fields_of_records():
    rows = [{"concept": "red apple", "style": "in flat colours"}, {"concept": "pear", "style": ""}]
    rows = [row | {"captions": ["x"]} for row in rows]
    some = options(about="fields", template="{concept}, {style}", prompts=5)
    assert evaluators.collect_prompts(sources.Source("some", rows), some) == ["red apple, in flat colours", "pear, "]
    for template in ("a {}", "{size}", "{"):
        with pytest.raises(DataError, match="must name fields of a record, such as concept, style"):
            evaluators.collect_prompts(sources.Source("some", rows), options(about="fields", template=template))


def test_a_source_without_records_for_prompts_is_refused():
    with pytest.raises(DataError, match="no records for prompts: about = 'pairs'"):
        evaluators.collect_prompts(sources.Source("some", RECORDS[:1], ("zero", "one", "two")), options(about="pairs"))


def test_the_reader_of_scenes_reads_their_captions():
    for index in range(12):
        scene, picture, captions, _ = make("test", index, 64)
        assert all(shapes.judge(picture, captions[0]).values())
        first = scene.objects[0]
        other = "a green heart" if first.colour != "green" else "a red heart"
        found = shapes.judge(picture, other)["correct"]
        assert not found or any(f"{o.colour} {o.shape}" in other for o in scene.objects)
    with pytest.raises(ValueError, match="not a caption of a scene"):
        shapes.judge(picture, "a dog")


def test_parts_of_a_prompt_are_averaged_over_the_prompts_that_have_them():
    named = {"colours": False, "relation": True}
    verdicts = [{"correct": True, "colours": True}, {"correct": False, **named}, {"correct": False}]
    assert evaluators.average_parts(verdicts) == {"correct": 1 / 3, "colours": 0.5, "relation": 1.0}


def test_the_reader_of_digits_reads_their_labels():
    from sklearn.datasets import load_digits

    from train_jax.datasets.digits.digits_dataset_builder import every_fifth, picture

    scans = load_digits()
    for index in np.flatnonzero(~every_fifth(scans.target))[:10]:  # of the reader's training scans
        image = picture(scans.images[index])
        assert digits.judge(image, f"a handwritten {scans.target[index]}") == {"correct": True}
        wrong = f"the digit {digits.LABEL_NAMES[(scans.target[index] + 1) % 10]}"
        assert digits.judge(image, wrong) == {"correct": False}
    with pytest.raises(ValueError, match="names no digit, or several"):
        digits.judge(image, "one or two")


@pytest.fixture(scope="module")
def context(tiny):
    config = config_lib.resolve(tiny[0])
    return Context(sharding.make_mesh(config.mesh), config)


@pytest.fixture(scope="module")
def task(context, tiny):
    return task_lib.module(context.config).make(context.config, tiny[1])


SAMPLING = {"guidance": 2.0, "top_k": 5, "seed": 1}


def test_drawings_are_graded_by_the_reader(context, task, trained, monkeypatch, compilations):
    """The evaluator's shares, counted again from drawings of the loaded model; weights stay where they are."""
    monkeypatch.setattr(rerank, "open_reranker", lambda path, dtype: path)
    monkeypatch.setattr(rerank, "clip_scores", lambda clip, texts, images: images.mean((2, 3, 4)).astype(np.float32))
    monkeypatch.setattr(inference, "on_devices", None)
    source = sources.open_source("digits", "test", data_dir=context.config.data.data_dir)
    source = dataclasses.replace(source, reader_accuracy={"digit": 0.75})
    monkeypatch.setattr(Context, "source", lambda self, name, split, where=(): source)
    some = options(template="the digit {}", prompts=6, n=3, clip="a reranker", batch_size=8, **SAMPLING)
    evaluate = task.evaluators["drawing"](some, context)
    metrics, pictures = evaluate({"generator": trained.variables}, {})
    before = len(compilations)
    again, _ = evaluate({"generator": trained.variables}, {})
    assert len(compilations) == before and again == metrics
    prompts = [f"the digit {digits.LABEL_NAMES[source[i]['label']]}" for i in range(6)]
    images = trained.draw(prompts, 3, progress=False, **SAMPLING).images
    correct = np.array([[digits.judge(x, p)["correct"] for x in row] for p, row in zip(prompts, images, strict=True)])
    best = images.mean((2, 3, 4)).argmax(1)
    assert metrics["correct"] == correct[:, 0].mean() and metrics["prompts"] == 6
    assert metrics["reader_accuracy/digit"] == 0.75
    assert metrics["correct_best_of_3"] == correct[np.arange(6), best].mean()
    np.testing.assert_array_equal(pictures["drawings"][:16, :16], images[0, 0])


def test_a_source_without_a_reader_is_refused(context, task, monkeypatch):
    monkeypatch.setattr(Context, "source", lambda self, name, split, where=(): SOURCE)
    with pytest.raises(DataError, match="some has no image reader"):
        task.evaluators["drawing"](options(), context)


class Decoder(decoder_evaluators.EvaluatedDecoder):
    """A decoder of images of 12 x 12 pixels, without a network."""

    stage = types.SimpleNamespace(size=12)

    def __init__(self):
        pass


def test_pictures_that_the_reader_cannot_read_are_refused():
    source = sources.Source("some", [{"captions": ["the digit 3"]}], read=digits.read, judge=digits.judge)
    context = types.SimpleNamespace(source_of=lambda options: source)
    for open_evaluator in (
        lambda: evaluators.Drawings(print, 12, options(about="captions"), context),
        lambda: decoder_evaluators.Reconstruction(Decoder(), options(), context),
    ):
        with pytest.raises(DataError, match=r"some: .* side divisible by 8, not \[12, 12, 3\]"):
            open_evaluator()


@pytest.mark.parametrize("changes", [{"n": 2}, {"prompts": 0}, {"about": "all"}, {"top_p": 0.0}])
def test_wrong_options_are_refused(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} = "):
        evaluators.EVALUATORS["drawing"].parse(changes, "evals.look")


def test_guidance_is_refused_before_a_run_that_drops_no_captions(tiny, context):
    config = config_lib.resolve(ConfigDict(tiny[0].to_dict() | {"condition_dropout": 0.0}))
    task = task_lib.module(config).make(config, tiny[1])
    with pytest.raises(ConfigError, match="guidance = 2.0; it must be 1 where .* config.condition_dropout is 0"):
        task.evaluators["drawing"](options(guidance=2.0), dataclasses.replace(context, config=config))
