"""Records -> a stream of shuffled batches of NumPy arrays: seeded, resumable, the same on any number of hosts.

Without JAX: processes that read and decode import this module, and need not wait for more.

The global stream is formed first (shuffle, one example a record, batches of contiguous examples), then
each host makes the rows of every batch that its devices hold (`train_jax.sharding.host_rows`), which need not be
contiguous, and which hosts may share. So N hosts see exactly the batches of one, however their devices are laid out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.sources import Source

BROKEN = "_broken"  # int32 [B]: how many unreadable samples were replaced to fill each row
_TRIES = 100  # records in a row that may be broken before the stream gives up
_WATCHED = 1000  # samples of which, at least, the share of broken ones is taken
_ENDLESS = 2**40  # batches; Grain counts in floats, and in 63 bits


def _make_example(source: Source | Sequence, example: Callable, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """Makes the example of the record at `index`. BrokenSample names the record."""
    record = source[index]
    try:
        return example(record, rng)
    except BrokenSample as error:
        raise BrokenSample(f"{record['id']}: {error}") from error


class _Examples:
    """Makes the example of a record index; a broken record is replaced by the next one that is not."""

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
    """This host's examples: its rows of consecutive batches, the first of which begins at the stream's example
    `start`.
    """

    def __init__(self, examples: grain.MapDataset, start: int, rows: np.ndarray, batch_size: int):
        self._examples, self._start, self._rows, self._batch_size = examples, start, rows, batch_size

    def __len__(self) -> int:
        return _ENDLESS * len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(int(index), len(self._rows))
        return self._examples[self._start + batch * self._batch_size + int(self._rows[row])]


class TrainStream:
    """An endless iterator over this host's rows of shuffled batches; its state is the examples drawn by all hosts.

    Args:
      example: `(record, rng) -> dict of arrays`; `rng` depends on the seed and the position in the stream alone.
      batch_size: rows over all hosts.
      rows: the rows of a batch that this host makes, ascending; None: all of them.
      workers: processes that read and decode; 0: threads of this one. The stream is the same.

    Each batch carries under `_broken` how many broken records were passed over for each row. A state can be taken up
    with another batch size, other workers and on another number of hosts. Workers start with the first batch.
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
            self._iterator = self._start()
        batch = next(self._iterator)
        self._drawn += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        return {"examples": self._drawn}

    def set_state(self, state: dict[str, int]) -> None:
        self._drawn = state["examples"]
        self._iterator = None

    def first_example(self) -> dict[str, np.ndarray]:
        """Returns the stream's first example, whose shapes are those of all."""
        return {name: np.asarray(x) for name, x in self._examples[0].items()}

    def _start(self):
        local_examples = _HostExamples(self._examples, self._drawn, self._rows, self._batch_size)
        batches = grain.MapDataset.source(local_examples).batch(len(self._rows))
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads absl's flags, which no one parses in a script or notebook
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2))
        return iter(batches)


def eval_batches(
    source: Source | Sequence, example: Callable, *, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields this host's rows of evaluation batches, each record once and in order: `(batch, mask)`, the last batch
    padded.

    `rows` are those of a batch that this host makes; None: all. `mask` is bool [rows], False where a row repeats the last
    record. A broken record is an error here: an evaluation with other records than it names would not compare.
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
    """Raises DataError if a larger share than `max_broken` of the records read for these examples was broken."""
    read = examples + broken
    if broken > max_broken * max(read, _WATCHED):
        raise DataError(
            f"{broken} of {read} samples read were broken, more than config.data.max_broken = {max_broken:.1%}: mend or "
            "remove them, or raise that share"
        )
