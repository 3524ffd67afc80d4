"""Code files of an image collection, computed by all hosts in parts; finished parts survive a crash.

    codes-HASH.npy        uint8, uint16 or uint32 [records, 1 or 2, h, w]
    codes-HASH.crc.npy    int64 [records]: CRC-32 of an image's file, or its complement (negative) if it has no codes
    codes-HASH.json       tokenizer, collection and transforms
    codes-HASH.parts/     codes of _PART records each, until all parts exist

Each host encodes a contiguous range of parts on its local devices, without waiting for other hosts; process 0 joins the
parts. Meanwhile hosts communicate by files, because collectives time out after minutes: host N of job J writes its error to
`failed-J-N` if it fails, and creates `stopped-J-N.SIGNAL` if it is asked to stop. Other jobs may share the folder and ignore
these files. Finally all hosts synchronise, so that a host continues only if all hosts do.
"""

import contextlib
import dataclasses
import json
import logging
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from train_jax import agreement, paths
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.files import read_arrays
from train_jax.data.images import Preprocess
from train_jax.data.sources import Source
from train_jax.errors import ConfigError, Interrupted
from vqgan_jax.coded import checksum_path
from vqgan_jax.vqgan import Vqgan

log = logging.getLogger(__name__)

_BATCH = 64
_PART = 16 * _BATCH  # records per part: the work that is lost if a host is killed
_POLL = 1.0  # seconds between two checks for files of other hosts
_PATIENCE = 1800.0  # timeout in seconds without a new part
_VISIBLE = 60.0  # timeout in seconds until a network file system shows a new file to all hosts


def ensure_code_file(
    vq: Vqgan,
    source: Source,
    preprocess: Preprocess,
    flip: bool,
    file: Path,
    provenance: Mapping,
    asked_to_stop: Callable[[], int],
) -> None:
    """Computes the code file of a collection if it does not exist, and waits until every host sees the file.

    All hosts must call this function. `asked_to_stop` returns the number of a received stop signal, or 0.

    Every host raises DataError if no image can be read or if any host fails, Interrupted if any host is asked to stop
    (finished parts are kept), and ConfigError if the hosts do not share the file's directory.
    """
    exists, token = multihost_utils.broadcast_one_to_all(np.array([file.is_file(), secrets.randbits(31)], np.int32))
    if exists:
        _await_visible(file)
        return
    job = _Job(file.with_suffix(".parts"), int(token), asked_to_stop)
    started = job.parts / f"job-{token}"
    if jax.process_index() == 0:
        job.parts.mkdir(parents=True, exist_ok=True)
        started.touch()
    _await_visible(started)
    signal_number = 0
    try:
        _compute_parts(job, vq, source, preprocess, flip, file, provenance)
    except Interrupted as interrupted:
        signal_number = interrupted.signal_number
    if signal_number := max(agreement.gather(signal_number)):
        raise Interrupted(signal_number)


def _compute_parts(
    job: "_Job", vq: Vqgan, source: Source, preprocess: Preprocess, flip: bool, file: Path, provenance: Mapping
) -> None:
    """Computes the parts of this host, joins all parts on process 0, and waits until `file` exists."""
    parts = job.parts
    starts = range(0, len(source), _PART)
    own_starts = np.array_split(np.asarray(starts), jax.process_count())[jax.process_index()].tolist()
    records = sum(min(_PART, len(source) - start) for start in own_starts)
    with tqdm(total=records, unit="image", desc=f"codes of {source.name}", disable=jax.process_index() > 0) as bar:
        for start in own_starts:
            if file.is_file():  # another job has finished
                break
            stop = min(start + _PART, len(source))
            with job.record_failure():
                if not (parts / _part_name(start)).is_file():
                    codes, crc = _encode_records(vq, source, preprocess, flip, start, stop)
                    part = parts / _part_name(start)
                    parts.mkdir(parents=True, exist_ok=True)
                    paths.write_atomically(part, lambda f, c=codes, s=crc: np.savez(f, codes=c, crc=s))
            bar.update(stop - start)
            job.check()
    if jax.process_index() == 0:
        expected = set(map(_part_name, starts))
        job.wait(lambda names: expected <= names or file.is_file())
        if not file.is_file():
            with job.record_failure():
                _join_parts(parts, len(source), file, source, provenance)
        shutil.rmtree(parts, ignore_errors=True)
    job.wait(lambda names: file.is_file())


def _encode_records(vq: Vqgan, source: Source, preprocess: Preprocess, flip: bool, start: int, stop: int):
    """Encodes the records `start` to `stop`; returns codes [n, 1 or 2, h, w] and image checksums int64 [n]."""
    side = preprocess.size // vq.factor
    codes = np.zeros((stop - start, 1 + flip, side, side), np.min_scalar_type(vq.num_codes - 1))
    crc = np.full(stop - start, -1, np.int64)
    for batch_start in range(start, stop, _BATCH):
        rows, images = [], []
        for index in range(batch_start, min(batch_start + _BATCH, stop)):
            try:
                record = source[index]
                crc[index - start] = ~zlib.crc32(record["image"])
                images.append(preprocess(record["image"]))
                rows.append(index - start)
            except BrokenSample as error:
                log.warning("%s: %s", source.name, error)
        if rows:
            batch = np.stack(images)
            crc[rows] = ~crc[rows]
            codes[rows, 0] = vq.encode(batch, batch_size=_BATCH)
            if flip:
                codes[rows, 1] = vq.encode(batch[:, :, ::-1], batch_size=_BATCH)
    return codes, crc


def _join_parts(parts: Path, count: int, file: Path, source: Source, provenance: Mapping) -> None:
    """Joins all parts into one memory-mapped array and writes the final files."""
    crc = np.empty(count, np.int64)
    unfinished = parts / file.name
    codes = None
    for start in range(0, count, _PART):
        part_codes, crc[start : start + _PART] = _read_part(parts / _part_name(start))
        if codes is None:
            shape = (count, *part_codes.shape[1:])
            codes = np.lib.format.open_memmap(unfinished, "w+", part_codes.dtype, shape)
        codes[start : start + _PART] = part_codes
    codes.flush()
    if (crc < 0).all():
        shutil.rmtree(parts)  # so that repaired images are read again
        raise DataError(f"{source.name}: none of its {count} images can be read")
    # The code file is written last: if it exists, it is complete and the other files exist.
    text = json.dumps(dict(provenance), indent=2)
    paths.write_atomically(file.with_suffix(".json"), lambda f: f.write(text.encode()), parts)
    paths.write_atomically(checksum_path(file), lambda f: np.save(f, crc), parts)
    unfinished.replace(file)


def _read_part(part: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        return tuple(read_arrays(part, ("codes", "crc")).values())
    except (OSError, ValueError) as error:
        raise DataError(f"{part} is damaged ({error}): remove it to compute its codes again") from error


def _part_name(start: int) -> str:
    return f"{start:012d}-{_PART}.npz"


# ---------------------------------------------------------------------------------------------------------------------
# Hosts


@dataclasses.dataclass(frozen=True)
class _Job:
    """A job that communicates between its hosts by files in the folder of parts.

    Attributes:
      parts: folder of parts.
      token: number that identifies the job.
      asked_to_stop: returns the number of a received stop signal, or 0.
    """

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
            raise DataError(f"codes could not be computed by {reasons}. Finished parts are kept in {self.parts}")
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


def _await_visible(path: Path) -> None:
    """Waits until every host sees a file of process 0; otherwise raises ConfigError on every host."""
    deadline = time.monotonic() + _VISIBLE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL / 10)
    visible = multihost_utils.process_allgather(np.asarray(path.exists()))
    if not visible.all():
        hosts = ", ".join(map(str, np.flatnonzero(~visible)))
        raise ConfigError(
            f"{path}: written by host 0, but host(s) {hosts} do not see it: set config.codes.dir to a directory that "
            "all hosts share"
        )
