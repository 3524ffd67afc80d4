"""Records with the codes of their images. This module does not import JAX, because data workers import this module."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer

from train_jax.data.errors import BrokenSample
from train_jax.data.sources import Source

_BLOCK = 4096  # records per block of a histogram


def checksum_path(file: Path) -> Path:
    """Returns the path of the image checksums that belong to the code file `file`."""
    return file.with_suffix(".crc.npy")


@dataclasses.dataclass(frozen=True, eq=False)
class CodedRecords(Sequence):
    """Records with `codes`, int32 [1 or 2, h, w], of the image and optionally of the flipped image.

    Pickling stores the file name only; arrays are memory-mapped again.
    """

    source: Source
    file: Path

    @functools.cached_property
    def codes(self) -> Integer[np.ndarray, "records v h w"]:
        """Codes of all records, memory-mapped, in the smallest unsigned type that holds them."""
        return np.load(self.file, mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def checksums(self) -> Int64[np.ndarray, "records"]:
        """CRC-32 of each image's file; the complement (negative) of an image without codes."""
        return np.load(checksum_path(self.file), mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def histogram(self) -> Int64[np.ndarray, "codes"]:
        """Counts how often each code occurs, without flipped images. The length is the largest code + 1."""
        counts = np.zeros(0, np.int64)
        for start in range(0, len(self), _BLOCK):
            block = np.s_[start : start + _BLOCK]
            block_counts = np.bincount(self.codes[block, 0][self.checksums[block] >= 0].ravel(), minlength=len(counts))
            block_counts[: len(counts)] += counts
            counts = block_counts
        return counts

    @property
    def name(self) -> str:
        return f"codes of {self.source.name}"

    @property
    def shard_starts(self) -> Int64[np.ndarray, "tars+1"] | None:
        return self.source.shard_starts

    def __reduce__(self):
        return CodedRecords, (self.source, self.file)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping:
        record = self.source.metadata(index)
        if self.checksums[index] < 0:
            raise BrokenSample(f"{record['id']}: the image could not be read when codes were computed")
        return record | {"codes": self.codes[index].astype(np.int32)}
