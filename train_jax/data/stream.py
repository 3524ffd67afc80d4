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
from train_jax.data.sources import Source

BROKEN = "_broken"  # int32 [B]: number of broken samples that were skipped for each row
_TRIES = 100  # maximum number of consecutive broken records
_MIN_SAMPLES = 1000  # minimum number of samples in the denominator of the share of broken samples
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


class _HostExamples:
    """Examples of this host: its rows of consecutive batches, starting at example `start` of the global stream."""

    def __init__(self, examples: grain.MapDataset, start: int, rows: np.ndarray, batch_size: int):
        self._examples, self._start, self._rows, self._batch_size = examples, start, rows, batch_size

    def __len__(self) -> int:
        return _ENDLESS * len(self._rows)

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
      workers: number of worker processes that read and decode; 0: threads of this process. The stream is the same.

    Each batch has a field `_broken`, the number of broken records that were skipped for each row. The state is the number of
    examples read by all hosts; it can be restored with another batch size, other workers and another number of hosts.
    Workers start with the first batch.
    """

    def __init__(
        self,
        source: Source | Sequence,
        example: Callable,
        *,
        batch_size: int,
        seed: int,
        rows: np.ndarray | None = None,
        workers: int = 0,
    ):
        self._examples = (
            grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(_Examples(source, example))
        )
        self._batch_size = batch_size
        self._rows = np.arange(batch_size) if rows is None else rows
        self._workers = workers
        self.set_state({"examples": 0})

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._make_iterator()
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

    def _make_iterator(self):
        """Makes the iterator over batches from the current position."""
        local_examples = _HostExamples(self._examples, self._num_examples, self._rows, self._batch_size)
        batches = grain.MapDataset.source(local_examples).batch(len(self._rows))
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which scripts and notebooks do not parse
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2))
        return iter(batches)


def eval_batches(
    source: Source | Sequence, example: Callable, *, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields `(batch, mask)` with this host's rows of evaluation batches, each record once and in order.

    Args:
      rows: indices of the batch rows that this host makes; None: all rows.

    The last batch is padded with the last record; `mask`, bool [rows], is False for padding. Raises DataError for a broken
    record, since evaluations on different records are not comparable.
    """
    rows = np.arange(batch_size) if rows is None else rows
    for start in range(0, len(source), batch_size):
        indices = start + rows
        examples = []
        for index in np.minimum(indices, len(source) - 1):
            try:
                examples.append(_make_example(source, example, int(index), np.random.default_rng(int(index))))
            except BrokenSample as error:
                raise DataError(f"a broken sample in an evaluation: {error}") from error
        yield {name: np.stack([x[name] for x in examples]) for name in examples[0]}, indices < len(source)


def check_broken(broken: int, examples: int, max_broken: float) -> None:
    """Raises DataError if the share of broken records among all records read exceeds `max_broken`."""
    read = examples + broken
    if broken > max_broken * max(read, _MIN_SAMPLES):
        raise DataError(
            f"{broken} of {read} samples read were broken, more than config.data.max_broken = {max_broken:.1%}: repair or "
            "remove them, or raise this limit"
        )
