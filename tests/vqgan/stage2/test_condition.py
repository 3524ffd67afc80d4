"""A class as a token."""

import numpy as np
import pytest

from train_jax.data.errors import BrokenSample
from vqgan_jax.stage2.condition import ClassCondition

TEN = ClassCondition(10)


def test_a_class_is_its_token_and_none_has_one_of_its_own():
    np.testing.assert_array_equal(TEN.encode([3, None, np.int32(9)]), [[3], [10], [9]])
    assert TEN.encode([3]).dtype == np.int32 and TEN.vocabulary_size == 11
    assert TEN.null.tolist() == [10] and TEN.likelihood_mask(TEN.encode([3, None])).all()
    np.testing.assert_array_equal(ClassCondition(0).encode([None, None]), [[0], [0]])
    assert len({TEN.seed(label) for label in (None, *range(10))}) == 11
    assert TEN.fingerprint != ClassCondition(9).fingerprint


@pytest.mark.parametrize(
    "condition, label, message",
    [
        (TEN, 10, "label 10: this model has labels 0 to 9"),
        (TEN, -1, "label -1: this model has labels 0 to 9"),
        (TEN, "three", "label 'three': this model has labels 0 to 9"),
        (ClassCondition(10, droppable=False), None, "was not trained without labels; pass labels 0 to 9"),
        (ClassCondition(0), 0, "was trained without labels; leave them out"),
    ],
)
def test_unknown_labels_are_refused(condition, label, message):
    with pytest.raises(ValueError, match=message):
        condition.encode([label])


def test_records_without_a_label_are_images_of_no_class():
    def token(condition, record):
        example = condition.example(record, None)
        assert example.keys() == {"condition"} and example["condition"].dtype == np.int32
        return example["condition"].tolist()

    assert token(TEN, {"label": 9}) == [9] and token(TEN, {"label": -1}) == token(TEN, {}) == [10]
    assert token(ClassCondition(0), {"label": 9}) == [0], "a model without classes does not look at labels"
    with pytest.raises(BrokenSample, match="label 10, where config.model.classes = 10"):
        TEN.example({"label": 10}, None)


def test_evaluations_sample_the_classes_in_turn():
    assert TEN.from_source(None, 12) == [*range(10), 0, 1]
    assert ClassCondition(0).from_source(None, 2) == [None, None]
