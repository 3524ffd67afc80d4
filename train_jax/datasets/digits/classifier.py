"""Reads a picture of a digit: a support vector machine that knows the training split's scans, and no model's pictures."""

import functools

import numpy as np
from jaxtyping import Float, UInt8

from train_jax.datasets.digits.digits_dataset_builder import every_fifth, picture

_SIDE = 8  # pixels across what the machine sees: the scans' own


def read(image: UInt8[np.ndarray, "size size 3"]) -> int:
    """The digit that a square picture shows, dark ink on white. `size` must be a multiple of 8."""
    return int(_machine().predict(_seen(image)[None])[0])


@functools.cache
def _machine():
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    train = ~every_fifth(digits.target)
    seen = np.stack([_seen(picture(scan)) for scan in digits.images[train]])
    return SVC(C=10.0, gamma=0.05).fit(seen, digits.target[train])


def _seen(image: np.ndarray) -> Float[np.ndarray, "64"]:
    """Shades of 8 x 8 fields, 0 for paper and 1 for ink."""
    size = image.shape[0]
    if image.shape != (size, size, 3) or size % _SIDE:
        raise ValueError(
            f"a picture of a digit must be square and its side divisible by {_SIDE}, not {list(image.shape)}"
        )
    ink = 1 - image.mean(axis=2) / 255
    return ink.reshape(_SIDE, size // _SIDE, _SIDE, size // _SIDE).mean(axis=(1, 3)).ravel()
