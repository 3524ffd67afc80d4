"""Tar files of captioned images (the WebDataset layout) with random access.

Files of one sample share their name up to the first dot: `000/cat.jpg`, `000/cat.txt` (a caption), `000/cat.json`. Each tar
is read through once for an index (where every sample's files begin), which is kept beside it, or in the cache folder where
that cannot be written. So shuffling is global, and a run resumes exactly. Nothing is ever unpacked.
"""

import dataclasses
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from train_jax.data.errors import BrokenSample, DataError

log = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_CAPTIONS = ("txt", "caption", "json")
_FORMAT = 1  # of an index file
_NAMED = 3  # examples in a message


@dataclasses.dataclass(frozen=True)
class _Place:
    """One sample: where the bytes of its image and caption lie in a tar."""

    tar: int
    key: str
    image: tuple[int, int]  # offset, size
    caption: tuple[int, int]
    kind: str  # the caption's suffix


class Tars(Sequence):
    """The samples of some tars, in their order: records with `image`, `captions`, `id`, and `label` where a .json has one.

    Args:
      pattern: a path; `{000..099}` counts, `{a,b}` lists, `*` and `?` match.

    Raises DataError if there is no such file, or none of them is a tar.
    """

    def __init__(self, pattern: str):
        self._paths = expand(pattern)
        self._places: list[_Place] = []
        for number, path in enumerate(self._paths):
            samples = _index(path)
            self._places += [_Place(number, *sample) for sample in samples]
        self._files: dict[int, int] = {}

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}  # descriptors stay in their process

    def __del__(self):
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict:
        place = self._places[index]
        return {"image": self._read(place.tar, place.image, self._name(place))} | self.described(index)

    def described(self, index: int) -> dict:
        """A record without its picture, whose bytes are not read."""
        place = self._places[index]
        name = self._name(place)
        return {"id": name} | _described(self._read(place.tar, place.caption, name), place.kind, name)

    def _name(self, place: _Place) -> str:
        return f"{self._paths[place.tar].name}:{place.key}"

    def _read(self, tar: int, where: tuple[int, int], name: str) -> bytes:
        offset, size = where
        try:
            if tar not in self._files:
                self._files[tar] = os.open(self._paths[tar], os.O_RDONLY)
            data = os.pread(self._files[tar], size, offset)
        except OSError as error:
            raise BrokenSample(f"{name}: {error}") from error
        if len(data) < size:
            raise BrokenSample(f"{name}: the tar ends in the middle of it")
        return data


def _described(data: bytes, kind: str, name: str) -> dict:
    try:
        text = data.decode("utf-8")
        if kind != "json":
            captions, found = [line.strip() for line in text.splitlines() if line.strip()], {}
        else:
            content = json.loads(text)
            value = next(content[key] for key in ("captions", "caption", "text", "TEXT") if content.get(key))
            captions = [value] if isinstance(value, str) else [str(item) for item in value]
            found = {"label": content["label"]} if isinstance(content.get("label"), int) else {}
    except (UnicodeDecodeError, ValueError, StopIteration, AttributeError, TypeError) as error:
        raise BrokenSample(f"{name}: its .{kind} holds no caption ({type(error).__name__})") from error
    if not captions:
        raise BrokenSample(f"{name}: its .{kind} is empty")
    return {"captions": captions} | found


def expand(pattern: str) -> list[Path]:
    """The files that a pattern names, in order. DataError if there are none, or if one that it names is missing."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part, pattern) if number % 2 else [part] for number, part in enumerate(parts)]
    found: list[Path] = []
    for name in map("".join, itertools.product(*choices)):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.isfile(name)
        if not matches:
            raise DataError(f"webdataset:{pattern}: there is no file {name}")
        found += map(Path, matches)
    return found


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


def _index(path: Path) -> list[tuple]:
    """`(key, image, caption, kind)` of each sample of a tar; kept in a file for the next time."""
    stat = path.stat()
    stamp = [_FORMAT, stat.st_size, stat.st_mtime_ns]
    files = [path.with_name(path.name + ".index.json"), _cache(path)]
    for file in files:
        try:
            saved = json.loads(file.read_text("utf-8"))
            if saved["stamp"] == stamp:
                return [(key, tuple(image), tuple(caption), kind) for key, image, caption, kind in saved["samples"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there, of another time, or cut off: it is made anew
    samples = list(_scan(path))
    text = json.dumps({"stamp": stamp, "samples": samples})
    for file in files:
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, "utf-8")
            new.replace(file)
            break
        except OSError:
            continue
    return samples


def _cache(path: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "train_jax" / "tars" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def _scan(path: Path) -> Iterator[tuple]:
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    refused, size = [], path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
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
    except tarfile.TarError as error:
        if not groups:
            raise DataError(
                f"{path} is no tar file that can be read ({error}); unpack compressed ones first"
            ) from error
        log.warning("%s: damaged after %d sample(s) (%s); what comes before is used", path, len(groups), error)
    _warn(path, refused, "member(s) refused")
    lonely = []
    for key, files in groups.items():
        image = next((files[suffix] for suffix in _IMAGES if suffix in files), None)
        kind = next((suffix for suffix in _CAPTIONS if suffix in files), None)
        if image is None or kind is None:
            lonely.append(f"{key} (no {'image' if image is None else 'caption'})")
        else:
            yield key, image, files[kind], kind
    _warn(path, lonely, "sample(s) left out")


def _warn(path: Path, names: list[str], what: str) -> None:
    if names:
        more = ", …" if len(names) > _NAMED else ""
        log.warning("%s: %d %s: %s%s", path, len(names), what, ", ".join(names[:_NAMED]), more)
