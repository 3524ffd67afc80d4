"""Tar files of captioned images (the WebDataset layout) with random access.

Files of one sample share their name up to the first dot: `000/cat.jpg`, `000/cat.txt` (one caption), `000/cat.json` (one or
several, and a label), `000/cat.cls` (a label). Each tar is read through once for an index of where every sample's files
begin, which is kept beside it, or in the cache folder where that cannot be written. So shuffling is global, and a run
resumes exactly. Nothing is ever unpacked.
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
_FORMAT = 3  # of an index file
_CLASSES = 10**9  # more than any data set has; labels are int32
_MOST_OPEN = 64  # tars at once, of the 1,024 files that a process may open by default
_NAMED = 3  # examples in a message


@dataclasses.dataclass(frozen=True)
class _Sample:
    """One sample: the byte ranges of its image, caption and label in a tar."""

    tar: int
    key: str
    image: tuple[int, int]  # offset, size
    caption: tuple[int, int]
    kind: str  # the caption's suffix
    label: tuple[int, int] | None  # of a .cls


class _OpenFile:
    """A file descriptor, shared by threads, that is closed when the last reader releases it."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


@functools.lru_cache(maxsize=_MOST_OPEN)
def _opened(path: Path, stamp: tuple[int, ...]) -> _OpenFile:
    """Opens a tar, of this stamp; cached, since a collection may have more tars than a process may have open files."""
    return _OpenFile(path)


class Tars(Sequence):
    """The samples of tars, in order: records with `image`, `captions`, `id`, and `label` where there is one.

    Args:
      pattern: a path; `{000..099}` counts, `{a,b}` lists, `*` and `?` match.

    Raises DataError if there is no such file, or none of them is a tar.
    """

    def __init__(self, pattern: str):
        self._paths = expand(pattern)
        self._stamps: list[tuple[int, ...]] = []
        self._samples: list[_Sample] = []
        for tar_index, path in enumerate(self._paths):
            stamp, entries = files.retried(functools.partial(_index, path), path, DataError)
            self._stamps.append(stamp)
            self._samples += [_Sample(tar_index, *entry) for entry in entries]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict:
        sample = self._samples[index]
        return {"image": self._read(sample.tar, sample.image, self._name(sample))} | self.described(index)

    def described(self, index: int) -> dict:
        """A record without its picture, whose bytes are not read."""
        sample = self._samples[index]
        name = self._name(sample)
        record = {"id": name} | _described(self._read(sample.tar, sample.caption, name), sample.kind, name)
        if sample.label is not None:
            record |= _label(self._read(sample.tar, sample.label, name), name)
        return record

    def _name(self, sample: _Sample) -> str:
        return f"{self._paths[sample.tar].name}:{sample.key}"

    def _read(self, tar: int, where: tuple[int, int], name: str) -> bytes:
        offset, size = where
        path, stamp = self._paths[tar], self._stamps[tar]

        def read() -> bytes:
            if not isinstance(path, Path):
                return paths.read_range(path, offset, size)
            try:
                return _opened(path, stamp).read(offset, size)
            except OSError:
                _opened.cache_clear()  # too many files are open, or a network disk has forgotten this one
                raise

        data = files.retried(read, name)
        if len(data) < size:
            raise BrokenSample(f"{name}: the tar ends in the middle of it")
        return data


def _described(data: bytes, kind: str, name: str) -> dict:
    try:
        text = files.decode_text(data)
        row = captions.parse_json(text) if kind == "json" else {"text": text}
        texts = captions.of_row(row)
    except ValueError as error:
        raise BrokenSample(f"{name}: its .{kind} holds no caption ({error})") from error
    if not texts:
        raise BrokenSample(f"{name}: its .{kind} is empty")
    return {"captions": texts} | _label_of(row)


def _label_of(row: Mapping) -> dict[str, int]:
    label = row.get("label") if isinstance(row, Mapping) else None
    return {"label": label} if type(label) is int and abs(label) < _CLASSES else {}


def _label(data: bytes, name: str) -> dict[str, int]:
    """Parses the label of a `.cls`, or of a `.json` beside another file of captions; {} for a `.json` without one."""
    text = data.strip()
    if text.startswith(b"{"):
        try:
            return _label_of(captions.parse_json(files.decode_text(data)))
        except ValueError as error:
            raise BrokenSample(f"{name}: its .json cannot be read ({error})") from error
    if text.startswith(b"["):  # captions, which stand beside others
        return {}
    if not re.fullmatch(rb"\d{1,9}", text):
        raise BrokenSample(f"{name}: its .cls is {text[:20]!r}, not the number of a class")
    return {"label": int(text)}


def expand(pattern: str) -> list[AnyPath]:
    """Expands a pattern to files, in order. DataError if there are none, or if one that it names is missing."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part, pattern) if index % 2 else [part] for index, part in enumerate(parts)]
    tars: list[AnyPath] = []
    for name in map("".join, itertools.product(*choices)):
        matches = paths.glob(name) if glob.has_magic(name) else [paths.path(name)]
        matches = [path for path in matches if path.is_file()]
        if not matches:
            raise DataError(f"webdataset:{pattern}: there is no file {name}")
        tars += matches
    return tars


def _choices(inside: str, pattern: str) -> list[str]:
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if counted is None:
        if "," not in inside:
            raise DataError(f"webdataset:{pattern}: write {{000..099}} or {{a,b}}, not {{{inside}}}")
        return inside.split(",")
    first, last = counted[1], counted[2]
    if int(first) > int(last):
        raise DataError(f"webdataset:{pattern}: {{{inside}}} counts downwards")
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Index


def _index(path: AnyPath) -> tuple[tuple[int, ...], list[tuple]]:
    """Indexes a tar: its stamp, and `(key, image, caption, kind, label)` of each sample; cached in a file."""
    stamp = [_FORMAT, *paths.stamp(path)]
    index_files = [path.with_name(path.name + ".index.json"), _cache(path)]
    for file in index_files:
        try:
            saved = json.loads(file.read_text("utf-8"))
            if saved["stamp"] == stamp:
                return tuple(stamp), [tuple(map(_tupled, sample)) for sample in saved["samples"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there, of another time, or cut off: it is made anew
    samples = list(_scan(path, stamp[1]))
    text = json.dumps({"stamp": stamp, "samples": samples})
    for file in index_files:
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, "utf-8")
            new.replace(file)
            break
        except Exception as error:  # a folder without permission; storage raises errors of its own
            log.debug("the index of %s cannot be kept in %s: %s", path, file, error)
    return tuple(stamp), samples


def _tupled(value):
    return tuple(value) if isinstance(value, list) else value


def _cache(path: AnyPath) -> Path:
    return paths.cache() / "tars" / f"{hashlib.sha256(str(paths.absolute(path)).encode()).hexdigest()[:32]}.json"


def _scan(path: AnyPath, size: int) -> Iterator[tuple]:
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    refused = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # after which the reader would come back to it for ever
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
    except Exception as error:  # TarError, and what odd headers make of numbers and names
        if not groups:
            raise DataError(
                f"{path} is no tar file that can be read ({error}); unpack compressed ones first"
            ) from error
        log.warning("%s: damaged after %d sample(s) (%s); what comes before is used", path, len(groups), error)
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
    if names:
        more = ", …" if len(names) > _NAMED else ""
        log.warning("%s: %d %s: %s%s", path, len(names), what, ", ".join(names[:_NAMED]), more)
