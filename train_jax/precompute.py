"""Arrays of the images of a collection, computed once by all hosts in parts; finished parts survive a crash.

    NAME-HASH.npy        [records, …]
    NAME-HASH.crc.npy    int64 [records]: CRC-32 of an image's file, or its complement (negative) if it has no array
    NAME-HASH.json       model, collection and transforms, of which HASH is made
    NAME-HASH.parts/     arrays of _PART records each, until all parts exist

Each host encodes a contiguous range of parts on its local devices, without waiting for other hosts; process 0 joins the
parts. Meanwhile hosts communicate by files, because collectives time out after minutes: host N of job J writes its error to
`failed-J-N` if it fails, and creates `stopped-J-N.SIGNAL` if it is asked to stop. Other jobs may share the folder and ignore
these files. Finally all hosts synchronise, so that a host continues only if all hosts do.

`train_jax.data.precomputed` has the records.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import DTypeLike
from tqdm import tqdm

from train_jax import agreement, paths
from train_jax.data.distinct import find_distinct
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.files import read_arrays
from train_jax.data.images import Preprocess
from train_jax.data.precomputed import checksum_path
from train_jax.data.sources import Source
from train_jax.errors import ConfigError, Interrupted

log = logging.getLogger(__name__)

BATCH = 64  # images encoded at a time
_PART = 16 * BATCH  # records per part: the work that is lost if a host is killed
_POLL = 1.0  # seconds between two checks for files of other hosts
_PATIENCE = 1800.0  # timeout in seconds without a new part
_VISIBLE = 60.0  # timeout in seconds until a network file system shows a new file to all hosts
_FORMAT = 2  # version of the file format
_PROBES = 512  # number of images whose checksums are compared before arrays are reused


@dataclasses.dataclass(frozen=True)
class Computation:
    """Function of images whose results are stored.

    Attributes:
      name: name of the results, such as "codes": of the files, of the group of options that has their `dir`, in messages.
      encode: function from n preprocessed images, uint8 [height, width, 3], n <= BATCH, to arrays [n, *shape].
      shape, dtype: of the result of one image, as it is stored.
      preprocess: preprocessing of the images.
      model: what identifies the function, such as a fingerprint; JSON can express it.
    """

    name: str
    encode: Callable[[Sequence[np.ndarray]], np.ndarray]
    shape: tuple[int, ...]
    dtype: DTypeLike
    preprocess: Preprocess
    model: Mapping[str, Any]

    def provenance(self, source: Source) -> dict[str, Any]:
        """Returns what determines the results for a source."""
        collection = {"source": source.name, "records": len(source)}
        return {"format": _FORMAT, **collection, "preprocess": json.loads(self.preprocess.to_json()), **self.model}


def ensure_file(
    computation: Computation, source: Source, directory: Path, asked_to_stop: Callable[[], int] = lambda: 0
) -> Path:
    """Returns the file with the results of the distinct records of a collection; computes it if `directory` lacks it.

    All hosts must call this function, and each computes a share of the results.

    Args:
      asked_to_stop: returns the number of a received stop signal, or 0.

    Every host raises DataError if stored results belong to other images (the collection has changed), if no image can be
    read or if any host fails; Interrupted if any host is asked to stop (finished parts are kept); and ConfigError if the
    hosts do not share the directory.
    """
    source, _ = find_distinct(source)
    name = hashlib.sha256(json.dumps(computation.provenance(source), sort_keys=True).encode()).hexdigest()[:16]
    file = directory / f"{computation.name}-{name}.npy"
    _ensure_file(computation, source, file, asked_to_stop)
    _check_checksums(source, file)
    return file


def _ensure_file(computation: Computation, source: Source, file: Path, asked_to_stop: Callable[[], int]) -> None:
    """Computes the file of a collection if it does not exist, and waits until every host sees the file."""
    exists, token = multihost_utils.broadcast_one_to_all(np.array([file.is_file(), secrets.randbits(31)], np.int32))
    if exists:
        _await_visible(file, computation.name)
        return
    job = _Job(computation.name, file.with_suffix(".parts"), int(token), asked_to_stop)
    started = job.parts / f"job-{token}"
    if jax.process_index() == 0:
        job.parts.mkdir(parents=True, exist_ok=True)
        started.touch()
    _await_visible(started, computation.name)
    signal_number = 0
    try:
        _compute_parts(job, computation, source, file)
    except Interrupted as interrupted:
        signal_number = interrupted.signal_number
    if signal_number := max(agreement.gather(signal_number)):
        raise Interrupted(signal_number)


def _check_checksums(source: Source, file: Path) -> None:
    """Raises DataError if the checksums of evenly spaced images differ from those stored with the arrays."""
    checksums = np.load(checksum_path(file), mmap_mode="r", allow_pickle=False)
    for index in sorted(set(np.linspace(0, len(source) - 1, _PROBES).astype(int).tolist())):
        try:
            checksum = zlib.crc32(source[index]["image"])
        except BrokenSample:
            checksum = -1
        if checksums[index] not in (checksum, ~checksum):
            raise DataError(
                f"{file} is stale: record {index} of {source.name} has another image than when the file was made. Remove "
                f"{file.with_suffix('.*')} to compute it again"
            )


def _compute_parts(job: "_Job", computation: Computation, source: Source, file: Path) -> None:
    """Computes the parts of this host, joins all parts on process 0, and waits until `file` exists."""
    parts = job.parts
    starts = range(0, len(source), _PART)
    own_starts = np.array_split(np.asarray(starts), jax.process_count())[jax.process_index()].tolist()
    records = sum(min(_PART, len(source) - start) for start in own_starts)
    description = f"{computation.name} of {source.name}"
    with tqdm(total=records, unit="image", desc=description, disable=jax.process_index() > 0) as bar:
        for start in own_starts:
            if file.is_file():  # another job has finished
                break
            stop = min(start + _PART, len(source))
            with job.record_failure():
                if not (parts / _part_name(start)).is_file():
                    arrays, crc = _encode_records(computation, source, start, stop)
                    part = parts / _part_name(start)
                    parts.mkdir(parents=True, exist_ok=True)
                    paths.write_atomically(part, lambda f, a=arrays, c=crc: np.savez(f, arrays=a, crc=c))
            bar.update(stop - start)
            job.check()
    if jax.process_index() == 0:
        expected = set(map(_part_name, starts))
        job.wait(lambda names: expected <= names or file.is_file())
        if not file.is_file():
            with job.record_failure():
                _join_parts(parts, computation, source, file)
        shutil.rmtree(parts, ignore_errors=True)
    job.wait(lambda names: file.is_file())


def _encode_records(computation: Computation, source: Source, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes the records `start` to `stop`; returns arrays [n, *shape] and image checksums int64 [n]."""
    arrays = np.zeros((stop - start, *computation.shape), computation.dtype)
    crc = np.full(stop - start, -1, np.int64)
    for batch_start in range(start, stop, BATCH):
        rows, images = [], []
        for index in range(batch_start, min(batch_start + BATCH, stop)):
            try:
                record = source[index]
                crc[index - start] = ~zlib.crc32(record["image"])
                images.append(computation.preprocess(record["image"]))
                rows.append(index - start)
            except BrokenSample as error:
                log.warning("%s: %s", source.name, error)
        if rows:
            crc[rows] = ~crc[rows]
            arrays[rows] = computation.encode(images)
    return arrays, crc


def _join_parts(parts: Path, computation: Computation, source: Source, file: Path) -> None:
    """Joins all parts into one memory-mapped array and writes the final files."""
    count = len(source)
    crc = np.empty(count, np.int64)
    unfinished = parts / file.name
    arrays = np.lib.format.open_memmap(unfinished, "w+", np.dtype(computation.dtype), (count, *computation.shape))
    for start in range(0, count, _PART):
        arrays[start : start + _PART], crc[start : start + _PART] = _read_part(parts / _part_name(start), computation.name)
    arrays.flush()
    if (crc < 0).all():
        shutil.rmtree(parts)  # so that repaired images are read again
        raise DataError(f"{source.name}: none of its {count} images can be read")
    # The array file is written last: if it exists, it is complete and the other files exist.
    text = json.dumps(computation.provenance(source), indent=2)
    paths.write_atomically(file.with_suffix(".json"), lambda f: f.write(text.encode()), parts)
    paths.write_atomically(checksum_path(file), lambda f: np.save(f, crc), parts)
    unfinished.replace(file)


def _read_part(part: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        return tuple(read_arrays(part, ("arrays", "crc")).values())
    except (OSError, ValueError) as error:
        raise DataError(f"{part} is damaged ({error}): remove it to compute its {name} again") from error


def _part_name(start: int) -> str:
    return f"{start:012d}-{_PART}.npz"


# ---------------------------------------------------------------------------------------------------------------------
# Hosts


@dataclasses.dataclass(frozen=True)
class _Job:
    """A job that communicates between its hosts by files in the folder of parts.

    Attributes:
      name: name of the results, for messages.
      parts: folder of parts.
      token: number that identifies the job.
      asked_to_stop: returns the number of a received stop signal, or 0.
    """

    name: str
    parts: Path
    token: int
    asked_to_stop: Callable[[], int]

    @contextlib.contextmanager
    def record_failure(self) -> Iterator[None]:
        """Writes an exception of the block to a file, for the hosts that wait for this host, and re-raises it."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the original error
                self._note_path("failed").write_text(f"{type(error).__name__}: {error}", "utf-8")
            raise

    def check(self) -> None:
        """Raises DataError if any host has failed, and Interrupted if any host was asked to stop."""
        if notes := self._list_notes("failed"):
            reasons = "; ".join(f"host {note.name.split('-')[2]}: {note.read_text('utf-8')}" for note in notes)
            raise DataError(f"{self.name} could not be computed by {reasons}. Finished parts are kept in {self.parts}")
        if signal_number := self.asked_to_stop():
            self._note_path("stopped", f".{signal_number}").touch()
        if notes := self._list_notes("stopped"):
            raise Interrupted(int(notes[0].suffix[1:]))

    def wait(self, done: Callable[[set[str]], bool]) -> None:
        """Waits until `done(file names in parts)` is true.

        Raises the errors of `check`, and DataError if no part is added for a long time.
        """
        num_files, last_change = -1, 0.0
        while not done(names := {path.name for path in self.parts.glob("*")}):
            self.check()
            if len(names) != num_files:
                num_files, last_change = len(names), time.monotonic()
            elif time.monotonic() - last_change > _PATIENCE:
                raise DataError(f"{self.parts}: {num_files} files, and no host has added a file for {_PATIENCE:.0f} seconds")
            time.sleep(_POLL)

    def _note_path(self, kind: str, suffix: str = "") -> Path:
        self.parts.mkdir(parents=True, exist_ok=True)
        return self.parts / f"{kind}-{self.token}-{jax.process_index()}{suffix}"

    def _list_notes(self, kind: str) -> list[Path]:
        return sorted(self.parts.glob(f"{kind}-{self.token}-*"))


def _await_visible(path: Path, name: str) -> None:
    """Waits until every host sees a file of process 0; otherwise raises ConfigError on every host."""
    deadline = time.monotonic() + _VISIBLE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL / 10)
    visible = multihost_utils.process_allgather(np.asarray(path.exists()))
    if not visible.all():
        hosts = ", ".join(map(str, np.flatnonzero(~visible)))
        raise ConfigError(
            f"{path}: written by host 0, but host(s) {hosts} do not see it: set config.{name}.dir to a directory "
            "that all hosts share"
        )
