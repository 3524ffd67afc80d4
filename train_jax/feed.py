"""Transfer of batches from the host to the devices."""

import collections
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding

from train_jax import sharding as sharding_lib
from train_jax.data.stream import TrainStream


def batch_shapes(stream: TrainStream, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch, over all hosts."""
    example = stream.first_example()
    return {name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype) for name, x in example.items()}


def to_device(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """Makes global arrays, sharded along their first axis, from the rows of each host.

    `batch_size`: rows over all hosts; None: as many as on this host.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    batch_size = batch_size or len(next(iter(batch.values())))
    rows = sharding_lib.host_rows(sharding, batch_size)

    def place(x: np.ndarray) -> jax.Array:
        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return x[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, of_device)

    return {name: place(x) for name, x in batch.items()}


class Prefetch:
    """An iterator over `to_device(batch)` that keeps `depth` batches in flight.

    `get_state` returns the position after the batch that was last handed out, however many are in flight, so that a
    checkpoint taken after an update resumes with the next batch.

    Attributes:
      error: why no batches follow those in flight; None while there are more. It is raised in place of the first
        missing one, `depth` calls after it is known: in time to inform other hosts.
    """

    def __init__(self, iterator: TrainStream, to_device: Callable, *, depth: int = 3):
        self._iterator, self._to_device = iterator, to_device
        self._ahead: collections.deque = collections.deque()
        self._depth = depth
        self._state = iterator.get_state()
        self.error: Exception | None = None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, jax.Array]:
        self.fill()
        if not self._ahead:
            raise self.error
        batch, self._state = self._ahead.popleft()
        return batch

    def fill(self) -> None:
        """Reads until `depth` batches are in flight, or there is an error."""
        while len(self._ahead) < self._depth and self.error is None:
            try:
                self._ahead.append((self._to_device(next(self._iterator)), self._iterator.get_state()))
            except Exception as error:
                self.error = error

    def get_state(self):
        return self._state
