"""Scanned handwritten digits with captions, from files of scikit-learn (no download)."""

import functools
import re

from train_jax.data.preparation import prepare_builder

LABEL_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

__all__ = ["LABEL_NAMES", "builder", "judge", "licences", "read", "truth"]


def builder(variant: str | None = None, data_dir: str | None = None):
    """Returns the TFDS builder of the digits, with prepared files. Raises ValueError for a variant: there are none."""
    from train_jax.datasets.digits.digits_dataset_builder import Builder

    if variant is not None:
        raise ValueError(f"there is no {variant!r}: this set has no variants")
    return prepare_builder(functools.partial(Builder, data_dir=data_dir))


def licences(variant: str, split: str) -> list[str]:
    """Returns who made the data, and their licence, a sentence each."""
    source = "https://archive.ics.uci.edu/dataset/80"
    return [f"Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak, {source}: CC-BY-4.0"]


def truth(builder) -> dict:
    """Returns the fields of a Source that tell the truth about records and images."""
    return {"label_names": LABEL_NAMES, "read": read, "judge": judge}


def read(image) -> int:
    """Classifies the digit in an image, with a classifier trained on real scans."""
    from train_jax.datasets.digits import classifier

    return classifier.read(image)


def judge(image, caption: str) -> dict[str, bool]:
    """Returns whether an image shows the digit that a caption names, as the part "correct".

    Raises ValueError for a caption that names no digit, or several digits.
    """
    named = [word for word in re.findall(r"[a-z]+|[0-9]+", caption.lower()) if word in (*LABEL_NAMES, *"0123456789")]
    if len(named) != 1:
        raise ValueError(f"{caption!r} names no digit, or several: write one as 'the digit three' or 'a handwritten 3'")
    label = int(named[0]) if named[0].isdigit() else LABEL_NAMES.index(named[0])
    return {"correct": read(image) == label}
