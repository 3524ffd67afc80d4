"""Examples of second stages. This module does not import JAX: the processes that read examples import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from train_jax.data.images import Augment
from vqgan_jax.stage2.condition import Condition


@dataclasses.dataclass(frozen=True)
class StreamExample:
    """Makes an example of a record: `(record, rng) -> {"condition", flags, "codes" or "image"}`.

    Attributes:
      augment: of images, whose codes are computed in every update; None: records have codes.
    """

    condition: Condition
    augment: Augment | None

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens = self.condition.example(record, rng)
        if self.augment is None:
            return tokens | {"codes": random_view(record["codes"], rng)}
        return tokens | {"image": self.augment(record["image"], rng)}


def random_view(codes: Int32[np.ndarray, "v h w"], rng: np.random.Generator) -> Int32[np.ndarray, "h w"]:
    """Returns a record's codes: of its image or, if there are both, at random of its mirror image."""
    return codes[rng.integers(len(codes))] if len(codes) > 1 else codes[0]
