"""The digits are scikit-learn's, enlarged, described in words, and split evenly. scikit-learn itself is asked."""

import collections

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from train_jax.data import images
from train_jax.data.sources import Source, open_source
from train_jax.datasets.digits import LABEL_NAMES
from train_jax.datasets.digits.digits_dataset_builder import SIZE, picture

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def splits() -> dict[str, Source]:
    return {split: open_source("digits", split) for split in ("train", "test")}


def test_every_digit_is_in_one_split(splits):
    ids = [record["id"] for source in splits.values() for record in source]
    assert sorted(ids) == [f"{number:04d}" for number in range(1797)]


def test_one_in_five_of_each_class_is_for_testing(splits):
    whole = collections.Counter(load_digits().target.tolist())
    test = collections.Counter(record["label"] for record in splits["test"])
    for digit in range(10):
        assert abs(test[digit] - whole[digit] / 5) <= 0.5


def test_test_digits_are_spread_over_the_writers(splits):
    # Writers come in runs: of each tenth of the scans, between a tenth and a third is for testing.
    tenths = np.array([int(record["id"]) for record in splits["test"]]) * 10 // 1797
    shares = np.bincount(tenths, minlength=10) / 179.7
    assert shares.min() > 0.1 and shares.max() < 1 / 3


def test_pictures_are_the_scans_enlarged(splits):
    digits = load_digits()
    for source in splits.values():
        for record in list(source)[::20]:
            number = int(record["id"])
            actual = np.asarray(images.decode(record["image"]))
            shades = (255 - digits.images[number] * 255 / 16).round().astype(np.uint8)  # 16 is ink: black
            direct = Image.fromarray(shades).resize((32, 32), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(actual, np.asarray(direct)[..., None].repeat(3, -1))
            assert record["label"] == digits.target[number]


def test_ink_is_dark_on_white():
    assert SIZE == 32
    np.testing.assert_array_equal(picture(np.zeros((8, 8))), np.full((32, 32, 3), 255))
    np.testing.assert_array_equal(picture(np.full((8, 8), 16.0)), np.zeros((32, 32, 3)))


def test_captions_say_the_digit(splits):
    assert list(LABEL_NAMES) == WORDS
    for source in splits.values():
        assert source.label_names == tuple(WORDS) and source.is_true is None
        for record in source:
            said = {WORDS[record["label"]], str(record["label"])}
            others = {*WORDS, *map(str, range(10))} - said
            captions = [caption.rstrip(".").split() for caption in record["captions"]]
            assert len(captions) == 10 == len({tuple(words) for words in captions})
            for words in captions:
                assert set(words) & said and not set(words) & others


def test_a_classifier_of_the_training_scans_reads_the_others(splits):
    source = splits["test"]
    right = [source.read(np.asarray(images.decode(record["image"]))) == record["label"] for record in source]
    assert len(right) == 359 and np.mean(right) > 0.97  # scikit-learn's own example reads 96.9 % of another half
    with pytest.raises(ValueError, match="divisible by 8"):
        source.read(np.zeros((20, 20, 3), np.uint8))
