"""Tar files of captioned images (the WebDataset layout) with random access.

Files of one sample share their name up to the first dot: `000/cat.jpg`, `000/cat.txt` (one caption), `000/cat.json`
(captions and a label), `000/cat.cls` (a label). Samples are read by position (see `train_jax.data.tar_index`). Random access
allows global shuffling and exact resumption. Tars are never unpacked.
"""

import functools
import glob
import itertools
import json
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train_jax import paths
from train_jax.data import captions, files, tar_index
from train_jax.data.errors import BrokenSample, DataError
from train_jax.paths import AnyPath

_MAX_LABEL = 10**9  # labels are int32
_MAX_OPEN = 64  # maximum number of open tars, well below the default limit of 1,024 open files per process


class _OpenFile:
    """File descriptor that threads share and that is closed when the last reader releases it."""

    def __init__(self, path: Path, stamp: tuple[int, ...]):
        self._descriptor = os.open(path, os.O_RDONLY)
        close = weakref.finalize(self, os.close, self._descriptor)
        stat = os.fstat(self._descriptor)
        if (stat.st_size, stat.st_mtime_ns) != stamp[1:]:
            close()
            raise _changed_error(path)

    def read(self, offset: int, size: int) -> bytes:
        """Reads up to `size` bytes, starting at `offset`."""
        return os.pread(self._descriptor, size, offset)


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open_cached(path: Path, stamp: tuple[int, ...]) -> _OpenFile:
    """Opens a tar, with a cache of limited size. Raises BrokenSample if it has another stamp than its index."""
    return _OpenFile(path, stamp)


@functools.cache
def _check_stored(path: AnyPath, stamp: tuple[int, ...]) -> None:
    """Checks the stamp of a tar in object storage, once per process: each check is a request."""
    if tar_index.read_stamp(path) != stamp:
        raise _changed_error(path)


def _changed_error(path: AnyPath) -> BrokenSample:
    return BrokenSample(f"{path}: the tar changed after its index was read; start again")


class Tars(Sequence):
    """Sequence of the samples of tars: records with `image`, `captions`, `id`, and optionally `label`.

    Args:
      pattern: a path; `{000..099}` counts, `{a,b}` lists, `*` and `?` match.

    Raises DataError if a file is missing or is not a tar.
    """

    def __init__(self, pattern: str):
        self._paths = expand(pattern)
        self._index, self._stamps = tar_index.open_index(self._paths)

    @property
    def starts(self) -> np.ndarray:
        """Index of the first sample of each tar, and the number of samples, int64 [tars + 1]."""
        return self._index.starts

    def version(self) -> str:
        """Returns a text that changes whenever a tar does, or its name."""
        return json.dumps([[str(path), *map(int, stamp)] for path, stamp in zip(self._paths, self._stamps, strict=True)])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict:
        sample = self._index[index]
        return {"image": self._read_member(sample.tar, sample.image, self._name(sample))} | self.metadata(index)

    def metadata(self, index: int) -> dict:
        """Returns a record without its image, and without reading the image."""
        sample = self._index[index]
        name = self._name(sample)
        record = {"id": name} | _parse_captions(self._read_member(sample.tar, sample.caption, name), sample.kind, name)
        if sample.label is not None:
            record |= _parse_label(self._read_member(sample.tar, sample.label, name), name)
        return record

    def _name(self, sample: tar_index.Sample) -> str:
        return f"{self._paths[sample.tar].name}:{sample.key}"

    def _read_member(self, tar: int, byte_range: tuple[int, int], name: str) -> bytes:
        """Reads a byte range of a tar, with retries. Raises BrokenSample if the tar changed."""
        offset, size = byte_range
        path, stamp = self._paths[tar], self._stamps[tar]

        def read() -> bytes:
            if not isinstance(path, Path):
                _check_stored(path, stamp)
                return paths.read_range(path, offset, size)
            try:
                return _open_cached(path, stamp).read(offset, size)
            except OSError:
                _open_cached.cache_clear()  # too many open files, or a stale handle of a network disk
                raise

        data = files.read_with_retries(read, name)
        if len(data) < size:
            raise BrokenSample(f"{name}: the tar ends in the middle of it")
        return data


def _parse_captions(data: bytes, kind: str, name: str) -> dict:
    """Parses a caption file: `captions`, and `label` if a `.json` has one."""
    try:
        text = files.decode_text(data)
        row = captions.parse_json(text) if kind == "json" else {"text": text}
        texts = captions.extract_row_captions(row)
    except ValueError as error:
        raise BrokenSample(f"{name}: its .{kind} holds no caption ({error})") from error
    if not texts:
        raise BrokenSample(f"{name}: its .{kind} is empty")
    return {"captions": texts} | _get_label(row)


def _get_label(row: Mapping) -> dict[str, int]:
    """Returns the label of a JSON object; {} if there is no valid label."""
    label = row.get("label") if isinstance(row, Mapping) else None
    return {"label": label} if type(label) is int and abs(label) < _MAX_LABEL else {}


def _parse_label(data: bytes, name: str) -> dict[str, int]:
    """Parses the label of a `.cls` file, or of a `.json` beside another caption file; {} for a `.json` without a label."""
    text = data.strip()
    if text.startswith(b"{"):
        try:
            return _get_label(captions.parse_json(files.decode_text(data)))
        except ValueError as error:
            raise BrokenSample(f"{name}: its .json cannot be read ({error})") from error
    if text.startswith(b"["):  # a list of captions
        return {}
    if not re.fullmatch(rb"\d{1,9}", text):
        raise BrokenSample(f"{name}: its .cls is {text[:20]!r}, not a class index")
    return {"label": int(text)}


def expand(pattern: str) -> list[AnyPath]:
    """Expands a pattern to a list of files. Raises DataError if a file is missing or nothing matches.

    `*` and `?` do not match the indexes beside tars.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_expand_braces(part, pattern) if index % 2 else [part] for index, part in enumerate(parts)]
    tars: list[AnyPath] = []
    for name in map("".join, itertools.product(*choices)):
        matches = [paths.path(name)]
        if glob.has_magic(name):
            matches = [path for path in paths.glob(name) if not tar_index.is_index(path)]
        matches = [path for path in matches if path.is_file()]
        if not matches:
            raise DataError(f"webdataset:{pattern}: there is no file {name}")
        tars += matches
    return tars


def _expand_braces(content: str, pattern: str) -> list[str]:
    """Expands the content of braces, such as `000..099` or `a,b`."""
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", content)
    if bounds is None:
        if "," not in content:
            raise DataError(f"webdataset:{pattern}: write {{000..099}} or {{a,b}}, not {{{content}}}")
        return content.split(",")
    first, last = bounds[1], bounds[2]
    if int(first) > int(last):
        raise DataError(f"webdataset:{pattern}: {{{content}}} counts downwards")
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
