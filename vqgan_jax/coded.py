"""Records with the codes of their images. This module does not import JAX, because data workers import this module."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer

from train_jax.data.precomputed import PrecomputedRecords
from train_jax.data.sources import Source

_BLOCK = 4096  # records per block of a histogram


class CodedRecords(PrecomputedRecords):
    """Records with `codes`, int32 [1 or 2, h, w], of the image and optionally of the flipped image."""

    def __init__(self, source: Source, file: Path):
        super().__init__(source, file, "codes")

    @property
    def codes(self) -> Integer[np.ndarray, "distinct v h w"]:
        """Codes of the distinct records, memory-mapped, in the smallest unsigned type that holds them."""
        return self.arrays

    @functools.cached_property
    def histogram(self) -> Int64[np.ndarray, "codes"]:
        """Counts how often each code occurs, without flipped images. The length is the largest code + 1."""
        counts = np.zeros(0, np.int64)
        for start in range(0, len(self), _BLOCK):
            codes = self.read_block(start, start + _BLOCK)[:, 0]
            block_counts = np.bincount(codes.ravel(), minlength=len(counts))
            block_counts[: len(counts)] += counts
            counts = block_counts
        return counts

    def __reduce__(self):
        return CodedRecords, (self.source, self.file)

    def __getitem__(self, index: int) -> Mapping:
        record = super().__getitem__(index)
        return record | {"codes": record["codes"].astype(np.int32)}
