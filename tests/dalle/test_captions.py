"""Rows of text tokens: a pad of its own for every position after the end."""

import dataclasses

import numpy as np
import pytest

from dalle_jax.captions import Captions
from train_jax.data import sources
from train_jax.data.captions import CaptionChoice
from train_jax.data.text import Tokenizer

TEXTS = ["a red circle", "a blue star", ""]


@pytest.fixture(scope="module")
def captions():
    return Captions(Tokenizer.train(TEXTS * 20, 530, 8))


def test_leading_captions_are_chosen_with_a_probability(captions):
    rng = np.random.default_rng(0)
    record = {"captions": TEXTS}
    for prob, leading, share in ((0.0, 1, 1 / 3), (0.6, 1, 0.6 + 0.4 / 3), (1.0, 1, 1.0), (1.0, 2, 0.5), (1.0, 9, 1 / 3)):
        chosen = dataclasses.replace(captions, choose=CaptionChoice(prob, leading))
        rows = [chosen.example(record, rng)["condition"] for _ in range(400)]
        assert abs(np.mean([np.array_equal(row, captions.encode(TEXTS[:1])[0]) for row in rows]) - share) < 0.1


def test_pads_after_the_end_are_their_positions(captions):
    rows, truncated = captions.encode_flagged(TEXTS)
    plain = captions.tokenizer.encode(TEXTS)
    for row, before in zip(rows, plain, strict=True):
        end = list(before).index(captions.tokenizer.eos_id)
        assert list(row[: end + 1]) == list(before[: end + 1])
        assert list(row[end + 1 :]) == [captions.tokenizer.vocab_size + i for i in range(end + 1, 8)]
    assert not truncated.any() and rows.max() < captions.vocabulary_size
    np.testing.assert_array_equal(captions.likelihood_mask(rows), rows < captions.tokenizer.vocab_size)
    np.testing.assert_array_equal(captions.null, rows[2])


def test_a_caption_that_is_too_long_is_truncated_and_keeps_its_end(captions, caplog):
    rows, truncated = captions.encode_flagged(["a red circle and a blue star and a green ring"])
    assert truncated.all() and rows[0, -1] == captions.tokenizer.eos_id and captions.likelihood_mask(rows).all()
    captions.encode(["a star", "a red circle and a blue star"])
    assert "1 of 2 prompt(s) are longer than the 8 tokens this model reads and were cut" in caplog.text


def test_other_values_than_lists_of_texts_are_refused(captions):
    with pytest.raises(TypeError, match=r"not one string: write \[text\]"):
        captions.encode("a red circle")
    with pytest.raises(ValueError, match="prompts must be a list of strings"):
        captions.encode(["a red circle", 3])


def test_training_sees_any_caption_and_evaluations_the_first(captions):
    record = {"captions": ["a red circle", "a blue star and a red circle and a star"]}
    examples = [captions.example(record, np.random.default_rng(seed)) for seed in range(20)]
    rows, truncated = captions.encode_flagged(record["captions"])
    assert {str(x["condition"].tolist()) for x in examples} == {str(row.tolist()) for row in rows}
    assert {bool(x["truncated"]) for x in examples} == set(truncated.tolist()) == {False, True}
    np.testing.assert_array_equal(captions.example(record, None)["condition"], rows[0])


def test_evaluations_sample_the_first_captions_of_a_source(captions):
    source = sources.Source("some", [{"captions": [text, "another"]} for text in TEXTS])
    assert captions.from_source(source, 2) == TEXTS[:2] and captions.from_source(source, 9) == TEXTS


def test_merges_are_dropped_in_training_only(captions):
    rough = Captions(captions.tokenizer, bpe_dropout=0.5)
    record = {"captions": ["a red circle"]}

    def rows(captions):
        examples = [captions.example(record, np.random.default_rng(seed)) for seed in range(20)]
        return {tuple(x["condition"].tolist()) for x in examples}

    assert rows(captions) == {tuple(captions.encode(record["captions"])[0].tolist())}
    assert len(rows(rough)) > 5
    np.testing.assert_array_equal(rough.example(record, None)["condition"], captions.encode(record["captions"])[0])
