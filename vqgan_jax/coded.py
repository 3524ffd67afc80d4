"""Records with codes of their pictures. Without JAX: processes that read examples import this module."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer

from train_jax.data.errors import BrokenSample
from train_jax.data.sources import Source

_BLOCK = 4096  # records whose codes are in memory together


def checksum_file(file: Path) -> Path:
    """Where the checksums of the pictures stand whose codes are in `file`."""
    return file.with_suffix(".crc.npy")


@dataclasses.dataclass(frozen=True, eq=False)
class Coded(Sequence):
    """Records with codes: int32 [1 or 2, h, w], of the picture and of its mirror image. Pickled without its arrays."""

    source: Source
    file: Path

    @functools.cached_property
    def codes(self) -> Integer[np.ndarray, "records v h w"]:
        """Codes of all records, mapped from the disk, in the smallest unsigned type that holds them."""
        return np.load(self.file, mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def checksums(self) -> Int64[np.ndarray, "records"]:
        """CRC-32 of each picture's file, or its complement (negative) where it could not be read and has no codes."""
        return np.load(checksum_file(self.file), mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def histogram(self) -> Int64[np.ndarray, "codes"]:
        """How often each code occurs, up to the largest that does; mirror images do not count."""
        counts = np.zeros(0, np.int64)
        for start in range(0, len(self), _BLOCK):
            block = np.s_[start : start + _BLOCK]
            more = np.bincount(self.codes[block, 0][self.checksums[block] >= 0].ravel(), minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
        return counts

    @property
    def name(self) -> str:
        return f"codes of {self.source.name}"

    def __reduce__(self):
        return Coded, (self.source, self.file)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping:
        record = self.source.described(index)
        if self.checksums[index] < 0:
            raise BrokenSample(f"{record['id']}: the picture could not be read when codes were made")
        return record | {"codes": self.codes[index].astype(np.int32)}
