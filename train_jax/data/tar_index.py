"""Index of the samples of tars: byte ranges in NumPy columns, scanned in parallel, memory-mapped.

Each tar is scanned once for an index of its own, which is saved beside the tar, or in the cache folder if that folder is
read-only. The indexes of all tars are joined to one table in the cache folder, which processes share by memory-mapping.
A tar that changes is scanned again.

Processes and hosts share the scanning by files: each visits the tars in an order of its own and scans those that have no
index yet.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from train_jax import paths
from train_jax.data import files
from train_jax.data.errors import DataError
from train_jax.data.images import IMAGE_SUFFIXES
from train_jax.paths import AnyPath

log = logging.getLogger(__name__)

CAPTIONS = ("txt", "caption", "json")  # suffixes of caption files
_IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_FORMAT = 5  # version of index files
_SUFFIX = ".index.npy"  # of the index beside a tar; an unfinished one has another suffix behind it
_BLOCK = 512  # members of a tar begin at multiples of this number of bytes
_MAX_SIZE = 2**32  # sizes are 32-bit numbers
_MIN_TARS = 8  # number of tars that a process scans at least, since it takes a second to start
_IO_THREADS = 32  # threads that wait for a network disk
# Seconds since the last opening for which joined indexes of other states of a set are kept: runs of these states may open
# them again when they resume.
_KEPT = 30 * 86_400
_MAX_LISTED = 3  # examples in a message

# Offsets are in blocks. A size of 0 with offset 0 means that there is no label.
SAMPLE = np.dtype(
    [
        ("tar", "<u4"),
        *((f"{member}_{field}", "<u4") for member in ("image", "caption", "label") for field in ("block", "size")),
        ("kind", "u1"),  # index in CAPTIONS
        ("key_end", "<u8"),  # end of the key in the joined keys, which begins where the previous key ends
    ]
)

# Program of a scanning process. Unlike those of multiprocessing, it does not import the user's main module.
_PROGRAM = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job["path"]
from train_jax.data import errors, tar_index
try:
    tar_index.scan_missing(job["tars"])
except errors.DataError:  # raised again by the process that waits
    sys.exit(1)
"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sample of a tar: the byte ranges (offset, size) of its image, caption and label."""

    tar: int
    key: str
    image: tuple[int, int]
    caption: tuple[int, int]
    kind: str  # suffix of the caption file
    label: tuple[int, int] | None


class TarIndex(Sequence):
    """Sequence of samples, memory-mapped from a folder, which may be removed afterwards.

    Pickling stores the name of the folder only.

    Attributes:
      folder: folder of the arrays.
      starts: index of the first sample of each tar, and the number of samples, int64 [tars + 1].

    Raises OSError, ValueError or EOFError if the folder is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.starts = np.load(folder / "starts.npy", allow_pickle=False)
        self._samples, self._keys = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            for name in ("samples", "keys")
        )

    def __reduce__(self):
        return TarIndex, (self.folder,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        position = range(len(self))[index]
        tar, *ranges, kind, key_end = self._samples[position].item()
        key_start = int(self._samples[position - 1]["key_end"]) if position else 0
        image, caption, label = ((block * _BLOCK, size) for block, size in zip(ranges[::2], ranges[1::2], strict=True))
        key = self._keys[key_start:key_end].tobytes().decode("utf-8", "surrogateescape")
        return Sample(tar, key, image, caption, CAPTIONS[kind], label if label[0] else None)


def open_index(tars: Sequence[AnyPath]) -> tuple[TarIndex, list[tuple[int, ...]]]:
    """Opens the joined index of tars, scanning those without an index. Returns the index and the tars' stamps.

    A joined index that is damaged is made again. Raises DataError for a file that cannot be read or is not a tar, and if the
    cache folder cannot be written.
    """
    stamps = list(_in_threads(read_stamp, tars))
    names = json.dumps([str(paths.absolute(tar)) for tar in tars])
    prefix = hashlib.sha256(names.encode()).hexdigest()[:32]
    folder = paths.cache() / "tars" / f"{prefix}-{hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        try:
            index = TarIndex(folder)
            with contextlib.suppress(OSError):  # a read-only cache, of which nothing is removed
                os.utime(folder)
            return index, stamps
        except (FileNotFoundError, ValueError, EOFError) as error:
            log.warning("%s is damaged (%s) and made again", folder, error)
            paths.remove(folder)
    _scan_in_processes(_list_missing(tars))
    scan_missing(_list_missing(tars))
    try:
        _join(tars, folder, stamps)
    except OSError as error:
        raise DataError(
            f"the index of {len(tars)} tar(s) cannot be written to {folder}: {error}. Set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from error
    for outdated in folder.parent.glob(f"{prefix}-*"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it
            if time.time() - outdated.stat().st_mtime > _KEPT:
                paths.remove(outdated)
    return TarIndex(folder), stamps


def _list_missing(tars: Sequence[AnyPath]) -> list[AnyPath]:
    """Lists the tars without an index."""
    return [tar for tar, header in zip(tars, _in_threads(_read_header, tars), strict=True) if header is None]


def scan_missing(tars: Iterable[str | os.PathLike]) -> None:
    """Scans the tars that have no index, in random order, since other processes and hosts may scan the same tars."""
    tars = [paths.path(tar) for tar in tars]
    for tar in random.sample(tars, len(tars)):
        files.read_with_retries(functools.partial(_scan_if_missing, tar), tar, DataError)


def _scan_if_missing(tar: AnyPath) -> None:
    """Scans a tar and saves its index, unless there is one."""
    if _read_header(tar) is None:
        stamp = read_stamp(tar)
        samples = list(_scan(tar, stamp[1]))
        if read_stamp(tar) != stamp:
            raise DataError(f"{tar} changed while its index was made; start again")
        save(tar, stamp, samples)


def _scan_in_processes(tars: Sequence[AnyPath]) -> None:
    """Scans tars in several processes, if there are many. Errors are left to the caller, who finds the index missing."""
    count = min(os.cpu_count() or 1, len(tars) // _MIN_TARS)
    if count < 2:
        return
    job = json.dumps({"path": sys.path, "tars": [os.fspath(tar) for tar in tars]}).encode()
    log.info("scanning %d tars in %d processes", len(tars), count)
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE))
            for _ in range(count)
        ]
        try:
            for process in processes:
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(job)
            for process in processes:
                process.wait()
        except BaseException:
            for process in processes:
                process.kill()
            raise


def _in_threads(function, tars: Sequence[AnyPath]) -> Iterator:
    """Yields `function(tar)` of each tar, computed in threads, with retries. Raises DataError for an unreadable file."""
    with concurrent.futures.ThreadPoolExecutor(min(_IO_THREADS, len(tars))) as pool:
        yield from pool.map(lambda tar: files.read_with_retries(functools.partial(function, tar), tar, DataError), tars)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def read_stamp(tar: AnyPath) -> tuple[int, ...]:
    """Returns what an index must be made of: the format, and size and modification time of the tar."""
    return (_FORMAT, *map(int, paths.stamp(tar)))


def _index_files(tar: AnyPath) -> list[AnyPath]:
    """Returns the paths where the index of a tar may be: beside the tar, and in the cache folder."""
    name = hashlib.sha256(str(paths.absolute(tar)).encode()).hexdigest()[:32]
    return [tar.with_name(tar.name + _SUFFIX), paths.cache() / "tars" / f"{name}.npy"]


def is_index(file: AnyPath) -> bool:
    """Returns whether a file beside tars is, by its name, the index of one, or an unfinished index."""
    return _SUFFIX in file.name


def _read_header(tar: AnyPath) -> tuple[AnyPath, int, int] | None:
    """Returns file, number of samples and length of the keys of a tar's index; None if there is no valid one."""
    stamp = read_stamp(tar)
    for file in _index_files(tar):
        try:
            with file.open("rb") as stream:
                *saved, samples, keys, body = np.load(stream, allow_pickle=False).tolist()
                body_start = stream.tell()
                stream.seek(0, os.SEEK_END)
                if tuple(saved) == stamp and stream.tell() == body_start + body:
                    return file, samples, keys
        except (OSError, ValueError, TypeError, EOFError):
            continue  # missing, truncated, or of another format
    return None


def _read_columns(file: AnyPath) -> tuple[np.ndarray, np.ndarray]:
    """Reads samples and keys of a tar's index."""
    with file.open("rb") as stream:
        _, samples, keys = (np.load(stream, allow_pickle=False) for _ in range(3))
    return samples, keys


def save(tar: AnyPath, stamp: tuple[int, ...], samples: Sequence[Sample]) -> None:
    """Saves the index of a tar, atomically: an array of the stamp and the sizes of what follows, samples, and keys.

    The sizes are the number of samples, the length of the keys, and the number of bytes that follow, by which a truncated
    file is recognised.

    Raises DataError if it can be saved neither beside the tar nor in the cache folder.
    """
    keys = [sample.key.encode("utf-8", "surrogateescape") for sample in samples]
    columns = np.zeros(len(samples), SAMPLE)
    for member in ("image", "caption", "label"):
        ranges = np.array([getattr(sample, member) or (0, 0) for sample in samples], np.int64).reshape(-1, 2)
        columns[f"{member}_block"], columns[f"{member}_size"] = ranges[:, 0] // _BLOCK, ranges[:, 1]
    columns["kind"] = [CAPTIONS.index(sample.kind) for sample in samples]
    columns["key_end"] = np.cumsum([len(key) for key in keys])
    write_columns(tar, stamp, columns, np.frombuffer(b"".join(keys), np.uint8))


def write_columns(tar: AnyPath, stamp: tuple[int, ...], samples: np.ndarray, keys: np.ndarray) -> None:
    """Writes the arrays of a tar's index; see `save`."""
    body, buffer = io.BytesIO(), io.BytesIO()
    np.save(body, samples, allow_pickle=False)
    np.save(body, keys, allow_pickle=False)
    np.save(buffer, np.array([*stamp, len(samples), len(keys), body.tell()], np.int64), allow_pickle=False)
    buffer.write(body.getbuffer())
    reasons = []
    for file in _index_files(tar):
        unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(buffer.getvalue())
            unfinished.replace(file)
            return
        except Exception as error:  # a read-only folder; storage libraries raise various classes
            reasons.append(f"{file}: {error}")
            with contextlib.suppress(Exception):
                unfinished.unlink()
    raise DataError(
        f"the index of {tar} cannot be written ({'; '.join(reasons)}): set XDG_CACHE_HOME to a folder that can be written"
    )


def _join(tars: Sequence[AnyPath], folder: Path, stamps: list[tuple[int, ...]]) -> None:
    """Joins the indexes of tars to one, in the new folder `folder`, whose name stands for `stamps`.

    Raises DataError if a tar has another stamp in the end: the folder would hold the index of other bytes, and be found
    again when the former file returns.
    """
    headers = list(_in_threads(_read_header, tars))
    if changed := [str(tar) for tar, header in zip(tars, headers, strict=True) if header is None]:
        raise DataError(f"{changed[0]} changed while its index was made; start again")
    index_files, counts, lengths = zip(*headers, strict=True)
    starts, key_starts = (np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]) for sizes in (counts, lengths))
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}{paths.UNFINISHED}")
    unfinished.mkdir(parents=True)
    try:
        np.save(unfinished / "starts.npy", starts)
        samples = np.lib.format.open_memmap(unfinished / "samples.npy", "w+", SAMPLE, (int(starts[-1]),))
        keys = np.lib.format.open_memmap(unfinished / "keys.npy", "w+", np.uint8, (int(key_starts[-1]),))
        for tar, file in enumerate(index_files):
            tar_samples, tar_keys = files.read_with_retries(functools.partial(_read_columns, file), file, DataError)
            if (len(tar_samples), len(tar_keys)) != (counts[tar], lengths[tar]):
                raise DataError(f"{tars[tar]} changed while its index was made; start again")
            rows = np.s_[starts[tar] : starts[tar + 1]]
            samples[rows] = tar_samples
            samples["tar"][rows] = tar
            samples["key_end"][rows] += np.uint64(key_starts[tar])
            keys[key_starts[tar] : key_starts[tar + 1]] = tar_keys
        samples.flush()
        keys.flush()
        del samples, keys
        for tar, stamp, new in zip(tars, stamps, _in_threads(read_stamp, tars), strict=True):
            if new != stamp:
                raise DataError(f"{tar} changed while its index was made; start again")
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have joined them at the same time
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# Scan


def _scan(path: AnyPath, size: int) -> Iterator[Sample]:
    """Scans a tar and yields its samples; logs members that are left out."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    refused = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # tarfile would loop forever
                    raise DataError(f"{member.name} has a size below 0")
                name = PurePosixPath(member.name)
                if not member.isreg() or member.sparse is not None:
                    if not member.isdir():
                        refused.append(f"{member.name} (a link or a device)")
                elif name.is_absolute() or ".." in name.parts:
                    refused.append(f"{member.name} (leads out of the tar)")
                elif member.offset_data + member.size > size:
                    refused.append(f"{member.name} (cut off)")
                elif member.size >= _MAX_SIZE:
                    refused.append(f"{member.name} (4 GiB or more)")
                else:
                    stem, _, suffix = name.name.partition(".")
                    key = str(name.with_name(stem)) if stem else str(name)
                    groups.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
    except OSError:
        raise
    except Exception as error:  # TarError, and parsing errors of invalid headers
        if not groups:
            raise DataError(f"{path} is not a readable tar file ({error}); unpack compressed ones first") from error
        log.warning("%s: damaged after %d sample(s) (%s); only these samples are used", path, len(groups), error)
    _warn(path, refused, "member(s) refused")
    incomplete = []
    for key, members in groups.items():
        image = next((members[suffix] for suffix in _IMAGES if suffix in members), None)
        kind = next((suffix for suffix in CAPTIONS if suffix in members), None)
        if image is None or kind is None:
            incomplete.append(f"{key} (no {'image' if image is None else 'caption'})")
        else:
            label = members.get("cls") or (members.get("json") if kind != "json" else None)
            yield Sample(0, key, image, members[kind], kind, label)
    _warn(path, incomplete, "sample(s) left out")


def _warn(path: AnyPath, names: list[str], what: str) -> None:
    """Logs names of members or samples that are left out."""
    if names:
        more = ", …" if len(names) > _MAX_LISTED else ""
        log.warning("%s: %d %s: %s%s", path, len(names), what, ", ".join(names[:_MAX_LISTED]), more)
