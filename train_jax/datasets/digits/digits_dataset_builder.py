"""TFDS builder of scikit-learn's digits: 1,797 scanned handwritten digits, 8 x 8 pixels in 17 shades of grey.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998; the
test part, as scikit-learn ships it.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from train_jax.datasets.shapes.render import png

SIZE = 32
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the digit {}.", "the digit {}", "a handwritten {}", "the number {}", "{}")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Scanned digits at 32 x 32 pixels with captions. The split `test` has a fifth of each class."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                    "id": tfds.features.Text(),
                }
            )
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # lazy import: needed only to prepare the files

        digits = load_digits()
        test = every_fifth(digits.target)
        return {
            "train": self._generate_examples(digits, np.flatnonzero(~test)),
            "test": self._generate_examples(digits, np.flatnonzero(test)),
        }

    def _generate_examples(self, digits, indices):
        for index in indices:
            label = int(digits.target[index])
            yield (
                int(index),
                {
                    "image": io.BytesIO(png(picture(digits.images[index]))),
                    "captions": [t.format(name) for t in TEMPLATES for name in (WORDS[label], str(label))],
                    "label": label,
                    "id": f"{index:04d}",
                },
            )


def every_fifth(target: np.ndarray) -> np.ndarray:
    """Returns the mask of the test split, a fifth of each class.

    The selection is random with a fixed seed, since consecutive digits are of the same writer.
    """
    test = np.zeros(len(target), bool)
    rng = np.random.default_rng(0)
    for label in range(10):
        members = np.flatnonzero(target == label)
        test[rng.permutation(members)[: round(len(members) / 5)]] = True
    return test


def picture(scan: np.ndarray) -> np.ndarray:
    """Converts a scan to a uint8 image [32, 32, 3] with dark ink on white, by bicubic interpolation.

    Args:
      scan: 8 x 8 shades from 0 to 16, with light ink.
    """
    grey = Image.fromarray((255 - scan * (255 / 16)).round().astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))
