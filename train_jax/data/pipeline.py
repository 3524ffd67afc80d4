"""Records -> shuffled, batched arrays on devices: seeded, resumable, the same stream on any number of hosts.

Order of things: the global stream is formed first (shuffle, one example a record, batches of contiguous rows), then each
host takes its rows of every batch. So N hosts see exactly the batches of one.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Sharding

from train_jax.data.images import BrokenSample
from train_jax.data.sources import DataError, Source
from train_jax.step import BROKEN

_TRIES = 100  # records in a row that may be broken before the stream gives up
_WATCHED = 1000  # samples of which, at least, the share of broken ones is taken


def _made(source: Source | Sequence, example: Callable, place: int, rng: np.random.Generator) -> dict[str, Any]:
    """The example made of the record at a place. BrokenSample names the record."""
    record = source[place]
    try:
        return example(record, rng)
    except BrokenSample as error:
        raise BrokenSample(f"{record['id']}: {error}") from error


class _Examples:
    """Example number i of the stream: the record there, or if it is broken the next one that is not."""

    def __init__(self, source: Source | Sequence, example: Callable):
        self._source, self._example = source, example

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        reasons = []
        for step in range(min(_TRIES, len(self._source))):
            place = (int(index) + step) % len(self._source)
            try:
                return _made(self._source, self._example, place, rng) | {BROKEN: np.int32(len(reasons))}
            except BrokenSample as error:
                reasons.append(str(error))
        name = getattr(self._source, "name", "the data")
        raise DataError(f"{name}: {len(reasons)} broken samples in a row; the first: {'; '.join(reasons[:3])}")


class train_iterator:
    """An endless iterator over this host's rows of shuffled batches; its state is the number of batches drawn.

    Args:
      example: `(record, rng) -> dict of arrays`; `rng` depends on the seed and the place in the stream alone.
      batch_size: rows over all hosts; `process_count` must divide it.
      workers: processes that read and decode; 0: threads of this one. The stream is the same.

    Each batch carries under `_broken` how many broken records were passed over for each row. A state can be taken up
    with other workers and on another number of hosts.
    """

    def __init__(
        self,
        source: Source | Sequence,
        example: Callable,
        *,
        batch_size: int,
        seed: int,
        process_index: int,
        process_count: int,
        workers: int = 0,
    ):
        if batch_size % process_count:
            raise ValueError(f"batch_size = {batch_size} cannot be split over {process_count} processes")
        self._stream = (
            grain.MapDataset.range(len(source))
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(_Examples(source, example))
            .batch(batch_size // process_count)[process_index::process_count]
        )
        self._workers = workers
        self.set_state({"batches": 0})

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._drawn += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"batches": self._drawn}

    def set_state(self, state: dict[str, int]) -> None:
        self._drawn = state["batches"]
        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        rest = self._stream[self._drawn :].to_iter_dataset(threads)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads absl's flags, which no one parses in a script or notebook
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2))
        self._iterator = iter(rest)


def eval_batches(
    source: Source | Sequence, example: Callable, *, batch_size: int, process_index: int, process_count: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """This host's rows of every batch, each record once and in order: `(batch, mask)`, the last batch padded.

    `mask` is bool [rows], False where a row repeats the last record. A broken record is an error here: an evaluation
    with other records than it names would not compare.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size = {batch_size} cannot be split over {process_count} processes")
    local = batch_size // process_count
    for start in range(0, len(source), batch_size):
        places = start + process_index * local + np.arange(local)
        rows = []
        for place in np.minimum(places, len(source) - 1):
            try:
                rows.append(_made(source, example, int(place), np.random.default_rng(int(place))))
            except BrokenSample as error:
                raise DataError(f"a broken sample in an evaluation: {error}") from error
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}, places < len(source)


def to_device(batch: dict[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
    """This host's rows -> global arrays over all hosts, sharded along their first axis."""
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}


class prefetch:
    """An iterator over `to_device(batch)` that keeps `depth` batches on their way.

    `get_state` tells the position after the batch that was last handed out, however many are on their way, so that a
    checkpoint taken after an update resumes with the next batch. Raises DataError when more than the share `max_broken`
    of the records read were broken.
    """

    def __init__(self, iterator: train_iterator, to_device: Callable, *, max_broken: float = 1.0, depth: int = 2):
        self._iterator, self._to_device, self._max_broken = iterator, to_device, max_broken
        self._ahead: collections.deque = collections.deque()
        self._depth = depth
        self._state = iterator.get_state()
        self._read = self._broken = 0

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, jax.Array]:
        while len(self._ahead) < self._depth:
            batch = next(self._iterator)
            self._check(batch)
            self._ahead.append((self._to_device(batch), self._iterator.get_state()))
        batch, self._state = self._ahead.popleft()
        return batch

    def get_state(self):
        return self._state

    def set_state(self, state) -> None:
        self._ahead.clear()
        self._iterator.set_state(state)
        self._state = state

    def _check(self, batch: dict[str, np.ndarray]) -> None:
        broken = int(batch[BROKEN].sum())
        self._read += len(batch[BROKEN]) + broken
        self._broken += broken
        if self._broken > self._max_broken * max(self._read, _WATCHED):
            raise DataError(
                f"{self._broken} of {self._read} samples read were broken, more than config.data.max_broken = "
                f"{self._max_broken:.1%}: mend or remove them, or raise that share"
            )
