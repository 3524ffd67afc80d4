"""Records with an array that was computed from their image. This module does not import JAX: data workers import it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from train_jax.data.distinct import find_distinct
from train_jax.data.errors import BrokenSample
from train_jax.data.sources import Source


def checksum_path(file: Path) -> Path:
    """Returns the path of the image checksums that belong to the array file `file`."""
    return file.with_suffix(".crc.npy")


@dataclasses.dataclass(frozen=True, eq=False)
class PrecomputedRecords(Sequence):
    """Records with an array of their image, stored by `train_jax.precompute` once for each distinct record.

    Pickling stores the file name only; arrays are memory-mapped again.

    Attributes:
      field: name of the array in a record.
      with_image: whether records keep their image, which is then read.
    """

    source: Source
    file: Path
    field: str
    with_image: bool = False

    @functools.cached_property
    def arrays(self) -> np.ndarray:
        """Arrays of the distinct records [distinct, …], memory-mapped."""
        return np.load(self.file, mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def checksums(self) -> Int64[np.ndarray, "distinct"]:
        """CRC-32 of each image's file; the complement (negative) of an image without an array."""
        return np.load(checksum_path(self.file), mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def _rows(self) -> Int64[np.ndarray, "records"] | None:
        """Row of each record in the arrays; None: they have the same order."""
        return find_distinct(self.source)[1]

    def read_block(self, start: int, stop: int) -> np.ndarray:
        """Returns the arrays [n, …] of the readable images among the records `start` to `stop`."""
        rows = slice(start, stop) if self._rows is None else self._rows[start:stop]
        return np.asarray(self.arrays[rows][self.checksums[rows] >= 0])

    @property
    def name(self) -> str:
        """Name of the array and of the source."""
        return f"{self.field} of {self.source.name}"

    @property
    def shard_starts(self) -> Int64[np.ndarray, "tars+1"] | None:
        """First record of each tar and the number of records; None: the source has no tars."""
        return self.source.shard_starts

    def __reduce__(self):
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping:
        record = self.source[index] if self.with_image else self.source.metadata(index)
        row = index if self._rows is None else self._rows[index]
        if self.checksums[row] < 0:
            raise BrokenSample(f"{record['id']}: the image could not be read when its {self.field} were computed")
        return {**record, self.field: np.array(self.arrays[row])}
