"""Digit classifier: a support vector machine trained on the scans of the training split only."""

import functools

import numpy as np
from jaxtyping import Float, UInt8

from train_jax.datasets.digits.digits_dataset_builder import every_fifth, picture

_SIDE = 8  # pixels of the scans, and of the classifier's input


def read(image: UInt8[np.ndarray, "size size 3"]) -> int:
    """Classifies a square image of a digit with dark ink on white. `size` must be a multiple of 8."""
    return int(_classifier().predict(_ink_features(image)[None])[0])


@functools.cache
def _classifier():
    """Trains the classifier, once per process."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    train = ~every_fifth(digits.target)
    features = np.stack([_ink_features(picture(scan)) for scan in digits.images[train]])
    return SVC(C=10.0, gamma=0.05).fit(features, digits.target[train])


def _ink_features(image: np.ndarray) -> Float[np.ndarray, "64"]:
    """Averages the ink (0: paper, 1: ink) of an image over a grid of 8 x 8 cells."""
    size = image.shape[0]
    if image.shape != (size, size, 3) or size % _SIDE:
        raise ValueError(
            f"an image of a digit must be square and its side divisible by {_SIDE}, not {list(image.shape)}"
        )
    ink = 1 - image.mean(axis=2) / 255
    return ink.reshape(_SIDE, size // _SIDE, _SIDE, size // _SIDE).mean(axis=(1, 3)).ravel()
