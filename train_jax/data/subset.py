"""Subsets of sources."""

from collections.abc import Sequence

import numpy as np

from train_jax.data.sources import Source


class Subset(Sequence):
    """Subset of records, given by a sequence of indices.

    Attributes:
      records: all records.
      indices: positions of the subset's records in them.
    """

    def __init__(self, records: Source | Sequence, indices: Sequence[int] | np.ndarray):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.records[int(self.indices[index])]


def first(records: Source | Sequence, count: int) -> Subset:
    """Returns the first `count` records, or all records if `count` is 0."""
    return Subset(records, range(min(count or len(records), len(records))))
