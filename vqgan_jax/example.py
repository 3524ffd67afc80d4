"""Image examples. This module does not import JAX: the processes that read examples import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.images import Augment


@dataclasses.dataclass(frozen=True)
class ImageExample:
    """Makes an example of a record: `(record, rng) -> {"image"}`."""

    augment: Augment

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": self.augment(record["image"], rng)}
