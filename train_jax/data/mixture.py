"""Mixtures of sources: `3 shapes/64 | 1 folder:PATH` takes three quarters of its records from the first source.

A part may be some records of a source: `emoji/64 where tone= and artist=noto`.
"""

import math
import re
from collections.abc import Sequence

from train_jax.data.errors import DataError

SEPARATOR = "|"
_PATH = re.compile(r"(?!tfds:)\w+:")  # beginning of a source that is named by a path
_MAX_RECORDS = 2.0**53  # largest number of records that float64 counts exactly


def parse(name: str) -> list[tuple[float, str]]:
    """Parses a mixture to a list of `(weight, name)`; the default weight is 1.

    Raises DataError for an empty part or a weight of 0.
    """
    parts = []
    for part in name.split(SEPARATOR):
        match = re.fullmatch(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)\s+)?(\S(?:.*\S)?)\s*", part)
        weight = float(match[1] or 1) if match else 0.0
        if not 0 < weight < math.inf:
            raise DataError(f"{name!r}: each part of a mixture is WEIGHT SOURCE, with a weight above 0, not {part!r}")
        parts.append((weight, match[2]))
    return parts


def split_conditions(name: str) -> tuple[str, list[str]]:
    """Splits `SOURCE where FIELD=VALUE and FIELD=VALUE` into the source and its conditions; values may contain "and".

    Paths may contain " where " as well, if no FIELD=VALUE follows it.
    """
    match = re.fullmatch(r"(.*?)\s+where\s+(.*)", name.strip())
    if match is None or (_PATH.match(match[1]) and not re.match(r"[\w-]+\s*=", match[2])):
        return name, []
    return match[1], re.split(r"\s+and\s+(?=[\w-]+\s*=)", match[2])


class Mixed(Sequence):
    """Sequence of the records of several sources, in proportion to their weights.

    Every record occurs at least once: the source that is largest relative to its weight occurs once, the others repeat.
    Records of one source are contiguous; the pipeline shuffles all records. Raises DataError if the weights differ so much
    that the number of records exceeds 2**53.

    Attributes:
      sources, counts: the sources and the number of records of each, repetitions included.
    """

    def __init__(self, sources: Sequence, weights: Sequence[float | int]):
        total = sum(weights)
        length = max(len(source) * total / weight for source, weight in zip(sources, weights, strict=True))
        if not length < _MAX_RECORDS:
            raise DataError(f"weights {list(weights)} are too far apart: the mixture would have {length:.1g} records")
        self.sources = list(sources)
        # The small subtraction keeps rounding from adding a record.
        self.counts = [math.ceil(length * weight / total - 1e-9) for weight in weights]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int):
        source, position = self._locate(index)
        return source[position]

    def metadata(self, index: int):
        """Returns a record without its image."""
        source, position = self._locate(index)
        return source.metadata(position)

    def _locate(self, index: int) -> tuple:
        """Returns the source of a record and its index in the source."""
        position = range(len(self))[index]
        for source, count in zip(self.sources, self.counts, strict=True):
            if position < count:
                return source, position % len(source)
            position -= count
        raise IndexError(index)
