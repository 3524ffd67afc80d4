"""Some records of a collection."""

from collections.abc import Sequence

import numpy as np

from train_jax.data.sources import Source


class Subset(Sequence):
    """The records at some places of a collection, in their order."""

    def __init__(self, records: Source | Sequence, places: Sequence[int] | np.ndarray):
        self._records, self._places = records, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int):
        return self._records[int(self._places[index])]


def first(records: Source | Sequence, count: int) -> Subset:
    """The first `count` records; 0: all."""
    return Subset(records, range(min(count or len(records), len(records))))
