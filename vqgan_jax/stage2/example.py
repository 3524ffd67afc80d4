"""Examples of second stages. This module does not import JAX, because data workers import this module."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from train_jax.data.images import Augment
from vqgan_jax.stage2.condition import Condition


@dataclasses.dataclass(frozen=True)
class StreamExample:
    """Converts a record to an example: `(record, rng) -> {"condition", flags, "codes" or "image"}`.

    Attributes:
      augment: augmentation of images, whose codes are computed in every update; None if records have codes.
    """

    condition: Condition
    augment: Augment | None

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Converts a record to an example."""
        tokens = self.condition.example(record, rng)
        if self.augment is None:
            return tokens | {"codes": random_view(record["codes"], rng)}
        return tokens | {"image": self.augment(record["image"], rng)}


def random_view(codes: Int32[np.ndarray, "v h w"], rng: np.random.Generator) -> Int32[np.ndarray, "h w"]:
    """Returns the codes of a record; with flipped codes, chooses at random between the image and the flipped image."""
    return codes[rng.integers(len(codes))] if len(codes) > 1 else codes[0]
