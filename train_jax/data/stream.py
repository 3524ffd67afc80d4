"""Streams of shuffled batches of NumPy arrays: seeded, resumable, equal for any number of hosts.

The global stream is defined first: shuffled records, one example per record, batches of consecutive examples. Each host
then makes only the rows of a batch that its devices hold (`train_jax.sharding.host_rows`). These rows may be
non-contiguous, and hosts may share rows. So N hosts see the same batches as a single host.

This module does not import JAX, so worker processes start quickly.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.shards import ShardShuffle
from train_jax.data.sources import Source

BROKEN = "_broken"  # int32 [B]: number of broken samples that were skipped for each row
_TRIES = 100  # maximum number of consecutive broken records
_MIN_SAMPLES = 1000  # minimum number of samples in the denominator of the share of broken samples
_CHUNK = 16  # examples per chunk: 2.4 MB of images of 224 pixels
_ENDLESS = 2**40  # number of batches; Grain uses floats and 63-bit integers, so it must be finite


def _make_example(source: Source | Sequence, example: Callable, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """Makes the example of the record at `index`; adds the record's id to BrokenSample errors."""
    record = source[index]
    try:
        return example(record, rng)
    except BrokenSample as error:
        raise BrokenSample(f"{record['id']}: {error}") from error


class _Examples:
    """Function that makes the example of a record index, replacing a broken record by the next intact record."""

    def __init__(self, source: Source | Sequence, example: Callable):
        self._source, self._example = source, example

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        reasons = []
        for step in range(min(_TRIES, len(self._source))):
            record_index = (int(index) + step) % len(self._source)
            try:
                return _make_example(self._source, self._example, record_index, rng) | {BROKEN: np.int32(len(reasons))}
            except BrokenSample as error:
                reasons.append(str(error))
        name = getattr(self._source, "name", "the data")
        raise DataError(f"{name}: {len(reasons)} broken samples in a row; the first: {'; '.join(reasons[:3])}")


def _shuffle(source: Source | Sequence, seed: int, buffer: int) -> grain.MapDataset:
    """Returns the endless order of record indices."""
    if not buffer:
        return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    starts = getattr(source, "shard_starts", None)
    if starts is None:
        raise DataError(
            f"config.data.shuffle_buffer = {buffer}: {getattr(source, 'name', 'the data')} does not consist of tars; only "
            "webdataset: does. Set it to 0, to shuffle all records"
        )
    return grain.MapDataset.source(ShardShuffle(starts, buffer, seed)).seed(seed)


class _EvalExamples:
    """Examples by record index, padded endlessly with the last; a broken record is an error."""

    def __init__(self, source: Source | Sequence, example: Callable):
        self._source, self._example = source, example

    def __getitem__(self, index: int) -> dict[str, Any]:
        record_index = min(index, len(self._source) - 1)
        try:
            return _make_example(self._source, self._example, record_index, np.random.default_rng(record_index))
        except BrokenSample as error:
            remedy = "--config.data.max_broken_eval=0.01, or --max-broken=0.01 of clip-jax evaluate, leaves such out"
            raise DataError(f"a broken sample in an evaluation: {error}. {remedy}") from error


class _HostExamples:
    """Examples of this host: its rows of consecutive batches, starting at example `start` of the global stream."""

    def __init__(
        self,
        examples: grain.MapDataset | _EvalExamples,
        start: int,
        rows: np.ndarray,
        batch_size: int,
        num_batches: int = _ENDLESS,
    ):
        self._examples, self._start, self._rows = examples, start, rows
        self._batch_size, self._num_batches = batch_size, num_batches

    def __len__(self) -> int:
        return self._num_batches * len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(int(index), len(self._rows))
        return self._examples[self._start + batch * self._batch_size + int(self._rows[row])]


class TrainStream:
    """Endless iterator over this host's rows of shuffled batches.

    Args:
      source: records.
      example: `(record, rng) -> dict of arrays`; `rng` depends only on the seed and the position in the stream.
      batch_size: global batch size.
      seed: random seed.
      rows: indices of the batch rows that this host makes, in ascending order; None: all rows.
      threads: number of threads that make examples, in each worker, or in this process if there are no workers.
      workers: number of worker processes that make examples; 0: threads of this process. The stream is the same.
      shuffle_buffer: number of records that are shuffled together (see `train_jax.data.shards`); 0: all.

    Each batch has a field `_broken`, the number of broken records that were skipped for each row. The state is the number of
    examples read by all hosts; it can be restored with another batch size, other threads and workers, and another number of
    hosts. Workers start with the first batch. About one batch is prefetched.
    """

    def __init__(
        self,
        source: Source | Sequence,
        example: Callable,
        *,
        batch_size: int,
        seed: int,
        rows: np.ndarray | None = None,
        threads: int = 2,
        workers: int = 0,
        shuffle_buffer: int = 0,
    ):
        self._examples = _shuffle(source, seed, shuffle_buffer).random_map(_Examples(source, example))
        self._batch_size = batch_size
        self._rows = np.arange(batch_size) if rows is None else rows
        self._threads, self._workers = threads, workers
        self.set_state({"examples": 0})

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            host_examples = _HostExamples(self._examples, self._num_examples, self._rows, self._batch_size)
            self._iterator = _iterate_batches(host_examples, len(self._rows), self._threads, self._workers)
        batch = next(self._iterator)
        self._num_examples += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the position in the stream."""
        return {"examples": self._num_examples}

    def set_state(self, state: dict[str, int]) -> None:
        """Restores a position in the stream."""
        self._num_examples = state["examples"]
        self._iterator = None

    def first_example(self) -> dict[str, np.ndarray]:
        """Returns the first example of the stream. All examples have the same shapes."""
        return {name: np.asarray(x) for name, x in self._examples[0].items()}


def eval_batches(
    source: Source | Sequence, example: Callable, *, batch_size: int, rows: np.ndarray | None = None, threads: int = 2
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields `(batch, mask)` with this host's rows of evaluation batches, each record once and in order.

    Args:
      rows: indices of the batch rows that this host makes; None: all rows.
      threads: number of threads that make examples, about one batch ahead of the batch that is yielded.

    The last batch is padded with the last record; `mask`, bool [rows], is False for padding. Raises DataError for a broken
    record, since evaluations on different records are not comparable.
    """
    rows = np.arange(batch_size) if rows is None else rows
    starts = range(0, len(source), batch_size)
    host_examples = _HostExamples(_EvalExamples(source, example), 0, rows, batch_size, len(starts))
    for start, batch in zip(starts, _iterate_batches(host_examples, len(rows), threads), strict=True):
        yield batch, start + rows < len(source)


def _iterate_batches(
    examples: _HostExamples, batch_size: int, threads: int, workers: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of consecutive examples, which threads or workers make in chunks of up to `_CHUNK` examples.

    Chunks, not batches, are the unit of parallelism and of transfer from workers, through shared memory. So the first batch
    uses all threads. Workers prefetch about one batch together, in their own memory; shared memory holds up to three chunks
    of each worker.
    """
    chunk = min(_CHUNK, batch_size)
    ahead = threads + -(-batch_size // (chunk * max(workers, 1)))
    chunks = grain.MapDataset.source(examples).batch(chunk)
    chunks = chunks.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which scripts and notebooks do not parse
            flags.FLAGS.mark_as_parsed()
        chunks = chunks.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=1))
    return _join_chunks(iter(chunks), batch_size)


def _join_chunks(chunks: Iterator[dict[str, np.ndarray]], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Joins chunks of any size to batches, in arrays that are allocated once per batch."""
    batch: dict[str, np.ndarray] = {}
    filled = 0
    for chunk in chunks:
        size, start = len(next(iter(chunk.values()))), 0
        while start < size:
            if not filled:
                batch = {name: np.empty((batch_size, *x.shape[1:]), x.dtype) for name, x in chunk.items()}
            count = min(size - start, batch_size - filled)
            for name, x in chunk.items():
                batch[name][filled : filled + count] = x[start : start + count]
            start, filled = start + count, filled + count
            if filled == batch_size:
                filled = 0
                yield batch


def check_broken(broken: int, examples: int, max_broken: float) -> None:
    """Raises DataError if the share of broken records among all records read exceeds `max_broken`."""
    read = examples + broken
    if broken > max_broken * max(read, _MIN_SAMPLES):
        raise DataError(
            f"{broken} of {read} samples read were broken, more than config.data.max_broken = {max_broken:.1%}: repair or "
            "remove them, or raise this limit"
        )
