"""Several sources as one: `3 shapes/64 | 1 folder:PATH` draws three quarters of its records from the first."""

import math
import re
from collections.abc import Sequence

from train_jax.data.errors import DataError

SEPARATOR = "|"
_MAX_RECORDS = 2.0**53  # records, which float64 counts one by one


def parse(name: str) -> list[tuple[float, str]]:
    """Parses the `(weight, name)` of each part; a part without a number weighs 1.

    DataError for an empty part or weight 0.
    """
    parts = []
    for part in name.split(SEPARATOR):
        match = re.fullmatch(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)\s+)?(\S(?:.*\S)?)\s*", part)
        weight = float(match[1] or 1) if match else 0.0
        if not 0 < weight < math.inf:
            raise DataError(f"{name!r}: each part of a mixture is WEIGHT SOURCE, with a weight above 0, not {part!r}")
        parts.append((weight, match[2]))
    return parts


class Mixed(Sequence):
    """Records of several sources in the shares of their weights.

    It is as long as it takes for every record to occur: the source that is largest for its weight occurs once, the others
    begin again. Records of one source stand together; the pipeline shuffles all of them. Raises DataError for weights so far
    apart that their records cannot be counted.
    """

    def __init__(self, sources: Sequence, weights: Sequence[float | int]):
        total = sum(weights)
        length = max(len(source) * total / weight for source, weight in zip(sources, weights, strict=True))
        if not length < _MAX_RECORDS:
            raise DataError(f"weights {list(weights)} are too far apart: every record would occur after {length:.1g} others")
        self._sources = list(sources)
        # The small subtraction keeps rounding from adding a record.
        self._counts = [math.ceil(length * weight / total - 1e-9) for weight in weights]

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int):
        source, position = self._locate(index)
        return source[position]

    def described(self, index: int):
        """A record without its picture."""
        source, position = self._locate(index)
        return source.described(position)

    def _locate(self, index: int) -> tuple:
        position = range(len(self))[index]
        for source, count in zip(self._sources, self._counts, strict=True):
            if position < count:
                return source, position % len(source)
            position -= count
        raise IndexError(index)
