"""Transfer of batches from the host to the devices."""

import collections
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from train_jax import sharding as sharding_lib
from train_jax.data.stream import TrainStream


def batch_shapes(stream: TrainStream, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a global batch, over all hosts."""
    example = stream.first_example()
    return {name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype) for name, x in example.items()}


def to_device(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """Makes global arrays, sharded along their first axis, from the local rows of each host.

    Args:
      batch_size: number of rows over all hosts; None: number of local rows.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    batch_size = batch_size or len(next(iter(batch.values())))
    rows = sharding_lib.host_rows(sharding, batch_size)

    def make_global(x: np.ndarray) -> jax.Array:
        def get_shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return x[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, get_shard)

    return {name: make_global(x) for name, x in batch.items()}


class Prefetch:
    """Iterator over `to_device(batch)` that prefetches `depth` batches of an iterator with `get_state`.

    `get_state` returns the position after the last returned batch, not counting prefetched batches, so a checkpoint saved
    after an update resumes with the next batch.

    Attributes:
      error: error that ended the stream; None while there are more batches. `next` raises the error after the prefetched
        batches, so other hosts can be notified before.
    """

    def __init__(self, iterator: Iterator[dict[str, np.ndarray]], to_device: Callable, *, depth: int = 3):
        self._iterator, self._to_device = iterator, to_device
        self._prefetched: collections.deque = collections.deque()
        self._depth = depth
        self._state = iterator.get_state()
        self.error: Exception | None = None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, jax.Array]:
        batch = self.peek()
        self._state = self._prefetched.popleft()[1]
        return batch

    def fill(self) -> None:
        """Reads until `depth` batches are prefetched or an error occurs."""
        while len(self._prefetched) < self._depth and self.error is None:
            try:
                self._prefetched.append((self._to_device(next(self._iterator)), self._iterator.get_state()))
            except Exception as error:
                self.error = error

    def peek(self) -> dict[str, jax.Array]:
        """Returns the next batch without taking it. Raises the error of the stream if there is none."""
        self.fill()
        if not self._prefetched:
            raise self.error
        return self._prefetched[0][0]

    def get_state(self):
        """Returns the position in the data after the last returned batch."""
        return self._state
