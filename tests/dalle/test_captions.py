"""Rows of text tokens: a pad of its own for every place after the end."""

import numpy as np
import pytest

from dalle_jax.captions import Captions
from train_jax.data.text import Tokenizer

TEXTS = ["a red circle", "a blue star", ""]


@pytest.fixture(scope="module")
def captions():
    return Captions(Tokenizer.train(TEXTS * 20, 530, 8))


def test_what_stands_after_the_end_is_the_place(captions):
    rows, cut = captions.encode_flagged(TEXTS)
    plain = captions.tokenizer.encode(TEXTS)
    for row, before in zip(rows, plain, strict=True):
        end = list(before).index(captions.tokenizer.eos_id)
        assert list(row[: end + 1]) == list(before[: end + 1])
        assert list(row[end + 1 :]) == [captions.tokenizer.vocab_size + place for place in range(end + 1, 8)]
    assert not cut.any() and rows.max() < captions.size
    np.testing.assert_array_equal(captions.counted(rows), rows < captions.tokenizer.vocab_size)


def test_a_caption_that_is_too_long_is_cut_and_keeps_its_end(captions):
    rows, cut = captions.encode_flagged(["a red circle and a blue star and a green ring"])
    assert cut.all() and rows[0, -1] == captions.tokenizer.eos_id and captions.counted(rows).all()
