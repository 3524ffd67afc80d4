"""Tar files of captioned images (the WebDataset layout) with random access.

Files of one sample share their name up to the first dot: `000/cat.jpg`, `000/cat.txt` (one caption), `000/cat.json`
(captions and a label), `000/cat.cls` (a label). Each tar is scanned once for an index of byte ranges, which is saved beside
the tar, or in the cache folder if that folder is read-only. Random access allows global shuffling and exact resumption.
Tars are never unpacked.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import tarfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from train_jax import paths
from train_jax.data import captions, files
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.images import IMAGE_SUFFIXES
from train_jax.paths import AnyPath

log = logging.getLogger(__name__)

_IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_CAPTIONS = ("txt", "caption", "json")
_FORMAT = 3  # version of index files
_MAX_LABEL = 10**9  # labels are int32
_MAX_OPEN = 64  # maximum number of open tars, well below the default limit of 1,024 open files per process
_MAX_LISTED = 3  # examples in a message


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Sample of a tar: the byte ranges of its image, caption and label."""

    tar: int
    key: str
    image: tuple[int, int]  # offset, size
    caption: tuple[int, int]
    kind: str  # suffix of the caption file
    label: tuple[int, int] | None


class _OpenFile:
    """File descriptor that threads share and that is closed when the last reader releases it."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Reads up to `size` bytes, starting at `offset`."""
        return os.pread(self._descriptor, size, offset)


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open_cached(path: Path, stamp: tuple[int, ...]) -> _OpenFile:
    """Opens a tar, with a cache of limited size. `stamp` invalidates the cache if the tar changes."""
    return _OpenFile(path)


class Tars(Sequence):
    """Sequence of the samples of tars: records with `image`, `captions`, `id`, and optionally `label`.

    Args:
      pattern: a path; `{000..099}` counts, `{a,b}` lists, `*` and `?` match.

    Raises DataError if a file is missing or is not a tar.
    """

    def __init__(self, pattern: str):
        self._paths = expand(pattern)
        self._stamps: list[tuple[int, ...]] = []
        self._samples: list[_Sample] = []
        for tar_index, path in enumerate(self._paths):
            stamp, entries = files.read_with_retries(functools.partial(_load_index, path), path, DataError)
            self._stamps.append(stamp)
            self._samples += [_Sample(tar_index, *entry) for entry in entries]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict:
        sample = self._samples[index]
        return {"image": self._read_member(sample.tar, sample.image, self._name(sample))} | self.metadata(index)

    def metadata(self, index: int) -> dict:
        """Returns a record without its image, and without reading the image."""
        sample = self._samples[index]
        name = self._name(sample)
        record = {"id": name} | _parse_captions(self._read_member(sample.tar, sample.caption, name), sample.kind, name)
        if sample.label is not None:
            record |= _parse_label(self._read_member(sample.tar, sample.label, name), name)
        return record

    def _name(self, sample: _Sample) -> str:
        return f"{self._paths[sample.tar].name}:{sample.key}"

    def _read_member(self, tar: int, byte_range: tuple[int, int], name: str) -> bytes:
        """Reads a byte range of a tar, with retries. Raises BrokenSample if the tar is truncated."""
        offset, size = byte_range
        path, stamp = self._paths[tar], self._stamps[tar]

        def read() -> bytes:
            if not isinstance(path, Path):
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
    """Expands a pattern to a list of files. Raises DataError if a file is missing or nothing matches."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_expand_braces(part, pattern) if index % 2 else [part] for index, part in enumerate(parts)]
    tars: list[AnyPath] = []
    for name in map("".join, itertools.product(*choices)):
        matches = paths.glob(name) if glob.has_magic(name) else [paths.path(name)]
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


# ---------------------------------------------------------------------------------------------------------------------
# Index


def _load_index(path: AnyPath) -> tuple[tuple[int, ...], list[tuple]]:
    """Loads the index of a tar from its cache file, or scans the tar and saves the index.

    Returns the stamp of the tar, and `(key, image, caption, kind, label)` of each sample.
    """
    stamp = [_FORMAT, *paths.stamp(path)]
    index_files = [path.with_name(path.name + ".index.json"), _cache_file(path)]
    for file in index_files:
        try:
            saved = json.loads(file.read_text("utf-8"))
            if saved["stamp"] == stamp:
                return tuple(stamp), [tuple(map(_to_tuple, sample)) for sample in saved["samples"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # missing, outdated or truncated
    samples = list(_scan(path, stamp[1]))
    text = json.dumps({"stamp": stamp, "samples": samples})
    for file in index_files:
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, "utf-8")
            new.replace(file)
            break
        except Exception as error:  # a read-only folder; storage libraries raise various classes
            log.debug("the index of %s cannot be saved to %s: %s", path, file, error)
    return tuple(stamp), samples


def _to_tuple(value):
    """Converts a list to a tuple; returns other values unchanged."""
    return tuple(value) if isinstance(value, list) else value


def _cache_file(path: AnyPath) -> Path:
    """Returns the path of a tar's index in the cache folder."""
    return paths.cache() / "tars" / f"{hashlib.sha256(str(paths.absolute(path)).encode()).hexdigest()[:32]}.json"


def _scan(path: AnyPath, size: int) -> Iterator[tuple]:
    """Scans a tar and yields `(key, image, caption, kind, label)` of each sample; logs members that are left out."""
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
                else:
                    stem, _, suffix = name.name.partition(".")
                    key = str(name.with_name(stem)) if stem else str(name)
                    groups.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
    except OSError:
        raise
    except Exception as error:  # TarError, and parsing errors of invalid headers
        if not groups:
            raise DataError(
                f"{path} is not a readable tar file ({error}); unpack compressed ones first"
            ) from error
        log.warning("%s: damaged after %d sample(s) (%s); only these samples are used", path, len(groups), error)
    _warn(path, refused, "member(s) refused")
    incomplete = []
    for key, members in groups.items():
        image = next((members[suffix] for suffix in _IMAGES if suffix in members), None)
        kind = next((suffix for suffix in _CAPTIONS if suffix in members), None)
        if image is None or kind is None:
            incomplete.append(f"{key} (no {'image' if image is None else 'caption'})")
        else:
            yield key, image, members[kind], kind, members.get("cls") or (members.get("json") if kind != "json" else None)
    _warn(path, incomplete, "sample(s) left out")


def _warn(path: AnyPath, names: list[str], what: str) -> None:
    """Logs names of members or samples that are left out."""
    if names:
        more = ", …" if len(names) > _MAX_LISTED else ""
        log.warning("%s: %d %s: %s%s", path, len(names), what, ", ".join(names[:_MAX_LISTED]), more)
