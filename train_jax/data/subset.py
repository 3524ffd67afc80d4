"""Subsets of records."""

from collections.abc import Sequence

import numpy as np


class Subset(Sequence):
    """Subset of records, given by a sequence of indices.

    Attributes:
      records: all records: a source, its records, or any sequence.
      indices: positions of the subset's records in them.
    """

    def __init__(self, records: Sequence, indices: Sequence[int] | np.ndarray):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.records[int(self.indices[index])]

    def metadata(self, index: int):
        """Returns the record at `index` without its image, if possible without reading the image."""
        read = getattr(self.records, "metadata", self.records.__getitem__)
        return read(int(self.indices[index]))


def first(records: Sequence, count: int) -> Subset:
    """Returns the first `count` records, or all records if `count` is 0."""
    return Subset(records, range(min(count or len(records), len(records))))
