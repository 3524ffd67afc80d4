"""Order of the training stream for storage that reads neighbouring records faster than distant ones."""

import functools
from collections.abc import Sequence

import numpy as np

_POSITIONS = 2**40  # endless; Grain uses 63-bit integers, so it must be finite


class ShardShuffle(Sequence):
    """Endless order of record indices: shuffled shards, and records shuffled within buffers.

    Args:
      starts: index of the first record of each shard (such as a tar), and the number of records, int64 [shards + 1].
      buffer: number of records that are shuffled together.
      seed: random seed.

    In each epoch, the shards are put into another order, and the sequence of their records is divided into buffers, which
    are shuffled. So about `1 + buffer / records per shard` shards are read at a time. Records are mixed with those of the
    same buffer only: a buffer should hold many more records than a batch, and be several times as large as a shard.
    Every index is computed from its position alone.
    """

    def __init__(self, starts: np.ndarray, buffer: int, seed: int):
        self._starts, self._sizes = starts[:-1], np.diff(starts)
        self._records, self._buffer, self._seed = int(starts[-1]), buffer, seed
        self._layout: tuple = (None,)

    def __len__(self) -> int:
        return _POSITIONS

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(int(position), self._records)
        shards, ends = self._arrange_shards(epoch)
        block, place = divmod(offset, self._buffer)
        first = block * self._buffer
        offset = first + _permute(min(self._buffer, self._records - first), self._seed, epoch, 1 + block)[place]
        number = np.searchsorted(ends, offset, side="right")
        shard = shards[number]
        return int(self._starts[shard] + self._sizes[shard] + offset - ends[number])

    def _arrange_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shards in the order of an epoch, and the position in the epoch at which each ends."""
        cached_epoch, *layout = self._layout
        if cached_epoch != epoch:
            shards = _permute(len(self._sizes), self._seed, epoch, 0)
            layout = [shards, np.cumsum(self._sizes[shards])]
            self._layout = (epoch, *layout)
        return layout[0], layout[1]


@functools.lru_cache(maxsize=8)
def _permute(count: int, *seed: int) -> np.ndarray:
    """Returns a random permutation of `range(count)`."""
    return np.random.default_rng(seed).permutation(count)
