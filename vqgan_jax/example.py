"""Image examples. This module does not import JAX, because data workers import this module."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.images import Augment


@dataclasses.dataclass(frozen=True)
class ImageExample:
    """Converts a record to an example: `(record, rng) -> {"image"}`."""

    augment: Augment

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Converts a record to an example."""
        return {"image": self.augment(record["image"], rng)}
