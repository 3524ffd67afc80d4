"""Evaluators of a second stage: their bits and samples are those of the loaded model."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from train_jax import sharding
from train_jax.data import sources
from train_jax.data.errors import DataError
from train_jax.errors import ConfigError
from train_jax.evaluation.evaluators import Context
from vqgan_jax.stage2 import evaluators
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.likelihood import entropy_bits

RNG = np.random.default_rng(0)


class Coded(list):
    """Records with codes, as `vqgan_jax.coded` has them."""

    @property
    def histogram(self):
        return np.bincount(np.concatenate([record["codes"][0].ravel() for record in self]), minlength=12)


RECORDS = Coded(
    {"label": label, "captions": [f"the digit {label}", "another"], "codes": RNG.integers(0, 12, (1, 4, 4)).astype(np.int32)}
    for label in (*range(10), -1)
)  # fmt: skip


def stage_of(generator) -> evaluators.EvaluatedModel:
    records = lambda source, asked_to_stop: RECORDS  # noqa: E731
    return evaluators.EvaluatedModel(generator.module, generator.condition, generator.vqgan, records)


@pytest.fixture
def context(make_task, monkeypatch):
    """Of a run on eight devices."""
    _, config = make_task("class")
    monkeypatch.setattr(Context, "source", lambda self, name, split, where=(): sources.Source("some", RECORDS))
    return Context(sharding.make_mesh(config.mesh), config)


def options(name: str, **changes) -> ConfigDict:
    return ConfigDict(evaluators.EVALUATORS[name].defaults().to_dict() | changes)


def test_bits_are_those_of_the_loaded_model(generator, context):
    """The last batch is padded. Of a text, its first caption counts."""
    evaluate = evaluators.make_factories(stage_of(generator))["likelihood"](options("likelihood", batch_size=8), context)
    with jax.set_mesh(context.mesh):
        metrics, images = evaluate({"generator": jax.tree.map(np.asarray, generator.variables)}, {})
    by_class = generator.condition.kind == "class"
    values = [*range(10), None] if by_class else [record["captions"][0] for record in RECORDS]
    tokens, codes = generator.condition.encode(values), np.stack([record["codes"][0].ravel() for record in RECORDS])
    condition_logits, code_logits = generator.logits(tokens, codes)

    def bits(logits, targets):
        log_probs = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)))
        return -np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0] / np.log(2)

    assert metrics["bits_per_code"] == pytest.approx(bits(code_logits, codes).mean(), rel=1e-5)
    assert metrics["unigram_bits_per_code"] == pytest.approx(entropy_bits(RECORDS.histogram), rel=1e-6)
    assert metrics["images"] == 11 and not images
    if by_class:
        assert "bits_per_class_token" not in metrics
    else:
        scored = generator.condition.likelihood_mask(tokens[:, 1:])
        expected = bits(condition_logits, tokens[:, 1:])[scored].mean()
        assert metrics["bits_per_text_token"] == pytest.approx(expected, rel=1e-5)


SAMPLING = {"class": {"top_p": 0.9}, "text": {"guidance": 2.0, "top_k": 5, "seed": 1}}


def test_samples_are_those_of_the_loaded_model(generator, context, compilations):
    """In batches of eight of eleven samples, the last one padded; compiled once for all batches and evaluations."""
    sampling = SAMPLING[generator.condition.kind]
    sample = evaluators.make_factories(stage_of(generator))["samples"]
    evaluate = sample(options("samples", rows=11, n=1, batch_size=8, **sampling), context)
    params = {"generator": jax.tree.map(np.asarray, generator.variables)}
    with jax.set_mesh(context.mesh):
        metrics, images = evaluate(params, {})
        assert [program._cache_size() for program in context._compiled.values()] == [1]
        compilations.clear()
        np.testing.assert_array_equal(evaluate(params, {})[1]["samples"], images["samples"])
        assert not compilations
    conditions = generator.condition.from_source(sources.Source("some", RECORDS), 11)
    drawing = generator.draw(conditions, 1, progress=False, **sampling)
    assert metrics == {"distinct_codes": len(np.unique(drawing.codes))}
    for row, picture in enumerate(drawing.images[:, 0]):
        np.testing.assert_array_equal(images["samples"][18 * row : 18 * row + 16], picture)


def test_samples_of_conditions_that_are_named_are_a_row_each(by_text, context):
    named = ("one", "the digit two")
    sample = evaluators.make_factories(stage_of(by_text))["samples"]
    evaluate = sample(options("samples", conditions=named, n=3, batch_size=8), context)
    with jax.set_mesh(context.mesh):
        _, images = evaluate({"generator": jax.tree.map(np.asarray, by_text.variables)}, {})
    expected = by_text.draw(named, 3, progress=False).images
    assert images["samples"].shape == (2 * 16 + 2, 3 * 16 + 2 * 2, 3)
    np.testing.assert_array_equal(images["samples"][18:, 36:], expected[1, 2])


@pytest.mark.parametrize(
    "option, allowed",
    [
        ({"n": 0}, "at least 1"),
        ({"rows": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": 2**32}, r"in \[0, 4294967296\)"),
        ({"temperature": -1.0}, "0 or more"),
        ({"temperature": 1e39}, "a number that float32 has"),
        ({"top_p": 0.0}, r"in \(0, 1\]"),
        ({"guidance": 1e39}, "a number that float32 has"),
    ],
)
def test_wrong_options_of_sampling_are_named(option, allowed):
    with pytest.raises(ConfigError, match=f"config.evals.look.{next(iter(option))} = .*; it must be {allowed}"):
        evaluators.EVALUATORS["samples"].parse(option, "evals.look")


def test_more_codes_than_the_model_has_are_refused(by_class):
    with pytest.raises(ConfigError, match=r"top_k = 13; it must be in \[0, 12\], 0 for all codes"):
        evaluators.check_sampling(options("samples", top_k=13), stage_of(by_class))


@pytest.mark.parametrize("kind", ["never dropped", "no classes", "text"])
def test_guidance_is_refused_without_unconditional_training(by_class, by_text, context, kind):
    """Before the run begins; where conditions are dropped in training, it is not."""
    condition = {
        "never dropped": ClassCondition(10, droppable=False),
        "no classes": ClassCondition(0),
        "text": dataclasses.replace(by_text.condition, droppable=False),
    }[kind]
    stage = dataclasses.replace(stage_of(by_class), condition=condition)
    message = "guidance = 2.0; it must be 1 where there is no condition, or config.condition_dropout is 0"
    with pytest.raises(ConfigError, match=message):
        evaluators.make_factories(stage)["samples"](options("samples", guidance=2.0), context)
    evaluators.check_sampling(options("samples", guidance=2.0), stage_of(by_text))


def test_what_data_cannot_meet_is_told_before_codes_are_computed(by_class, context, monkeypatch):
    monkeypatch.setattr(evaluators, "open_features", lambda spec: "some network")
    make = evaluators.make_factories(stage_of(by_class))
    with pytest.raises(ConfigError, match=r"conditions = \(12,\): label 12: this model has labels 0 to 9"):
        make["samples"](options("samples", conditions=(12,)), context)
    with pytest.raises(DataError, match="some: distances of collections need two or more images, not 1"):
        make["samples"](options("samples", rows=1, n=1, features="a CLIP"), context)
    source = sources.Source("more", [{"label": 3}, {"label": 11}], label_names=tuple("abcdefghijkl"))
    monkeypatch.setattr(Context, "source", lambda self, name, split, where=(): source)
    with pytest.raises(DataError, match="more has the label 11, and the model has labels 0 to 9"):
        make["likelihood"](options("likelihood"), context)


def test_unigram_bits_are_the_entropy_of_frequencies():
    expected = 5 / 8 * np.log2(8 / 5) + 3 * 1 / 8 * 3
    np.testing.assert_allclose(entropy_bits(np.array([5, 1, 0, 1, 1])), expected, rtol=1e-12)
