"""Subsets of collections of records."""

from collections.abc import Sequence

import numpy as np

from train_jax.data.sources import Source


class Subset(Sequence):
    """The records of a collection at these indices, in this order."""

    def __init__(self, records: Source | Sequence, indices: Sequence[int] | np.ndarray):
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._records[int(self._indices[index])]


def first(records: Source | Sequence, count: int) -> Subset:
    """Returns the first `count` records; 0: all."""
    return Subset(records, range(min(count or len(records), len(records))))
