"""Real scanned digits with captions, from scikit-learn's own files: no download."""

from train_jax.data import embedded

LABEL_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

__all__ = ["LABEL_NAMES", "builder", "read"]


def builder(variant: str | None = None, data_dir: str | None = None):
    """The TFDS builder of the digits, its files made if they are not there yet. There are no variants of them."""
    from train_jax.data.digits.digits_dataset_builder import Builder

    return embedded.prepared(Builder, variant, data_dir)


def read(image) -> int:
    """The digit that a picture shows, as a classifier trained on real scans sees it."""
    from train_jax.data.digits import classifier

    return classifier.read(image)
