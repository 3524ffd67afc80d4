"""Search a folder of pictures by text or by picture: `build` makes an index, `search` asks it.

An index is a directory:

    meta.json          version, weights' fingerprint, model, folder, dimension, names of the parts, complete or not
    <part>.npy         float32 [n, dim] embeddings of unit norm
    <part>.jsonl       one object a row: path relative to the folder, size in bytes, mtime in nanoseconds
    broken.jsonl       files that could not be read: path and reason

Replacing `meta.json` is the only act that changes what an index holds, so a process may be killed at any moment: the next
`build` goes on from there. A finished index is one part, sorted by path.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32
from PIL import Image
from tqdm import tqdm

from clip_jax.clip import Clip
from train_jax.data.images import BrokenSample
from train_jax.data.sources import IMAGE_SUFFIXES

VERSION = 1
COMMIT_SECONDS = 5.0  # work that a kill can cost
_META, _BROKEN, _LOCK = "meta.json", "broken.jsonl", "lock"
_READERS = 8


class SearchError(ValueError):
    """A folder that cannot be indexed, an index that cannot be opened, or a query that does not fit it."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result: the picture's path, and the cosine of its embedding with the query's, in [-1, 1]."""

    path: Path
    score: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What `build` did.

    Attributes:
      indexed: pictures in the index now.
      encoded, reused, dropped: pictures encoded by this call, taken over from an earlier one, and removed because their
        file is gone or has changed.
      broken: path relative to the folder -> reason, for files that look like pictures and could not be read.
      ignored: files of other kinds, by suffix.
    """

    indexed: int
    encoded: int
    reused: int
    dropped: int
    broken: Mapping[str, str]
    ignored: Mapping[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """An index in memory. Open one with `Index.open`.

    Attributes:
      directory: where it is stored.
      folder: the folder of pictures.
      paths: of the pictures, relative to `folder`.
      embeddings: float32 [n, dim], a row a path.
      fingerprint: of the weights that made it.
      model: where these were loaded from.
      complete: False if the last `build` was interrupted.
    """

    directory: Path
    folder: Path
    paths: tuple[str, ...]
    embeddings: Float32[np.ndarray, "n dim"]
    fingerprint: str
    model: str
    complete: bool

    @classmethod
    def open(cls, directory: str | Path) -> "Index":
        """Reads an index. Raises SearchError if `directory` holds none, or a damaged one, or one of another version."""
        directory = Path(directory)
        meta = _read_meta(directory)
        if meta is None:
            raise SearchError(f"{directory} holds no index; make one with: clip-jax index FOLDER --model DIR --out {directory}")
        entries, rows = _read_parts(directory, meta)
        return cls(
            directory,
            Path(meta["folder"]),
            tuple(entry["path"] for entry in entries),
            rows,
            meta["fingerprint"],
            meta["model"],
            meta["complete"],
        )

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def _on_device(self) -> jax.Array:
        return jnp.asarray(self.embeddings)


# ---------------------------------------------------------------------------------------------------------------------
# Asking


def search(
    index: Index, clip: Clip, *, text: str | None = None, image: Image.Image | np.ndarray | str | Path | None = None, top: int = 9
) -> list[Hit]:
    """The `top` pictures of the index closest to a text or to a picture, best first; an exact search on the device.

    Raises SearchError if the index was made with other weights, if it is not exactly one of `text` and `image` that is
    given, or if `top` is not positive; BrokenSample if the picture cannot be read.
    """
    if (text is None) == (image is None):
        raise SearchError("search takes a text or an image: one of them, not both")
    if top < 1:
        raise SearchError(f"top = {top} must be at least 1")
    if index.fingerprint != clip.fingerprint:
        raise SearchError(
            f"{index.directory} was made with other weights: the index has fingerprint {index.fingerprint[:16]}… (of "
            f"{index.model}), the model {clip.name} has {clip.fingerprint[:16]}…. Search with that model, or index again"
        )
    query = clip.encode_text([text])[0] if text is not None else clip.encode_image([image])[0]
    scores, rows = _nearest(index._on_device, query, min(top, len(index)))
    return [
        Hit(index.folder / index.paths[row], float(score))
        for row, score in zip(np.asarray(rows), np.asarray(scores), strict=True)
    ]


@functools.partial(jax.jit, static_argnums=2)
def _nearest(
    embeddings: Float32[Array, "n dim"], query: Float32[Array, "dim"] | Float32[np.ndarray, "dim"], top: int
) -> tuple[Float[Array, "top"], Int32[Array, "top"]]:
    # Exact also on devices that multiply in lower precision unless they are asked not to.
    return jax.lax.top_k(jnp.matmul(embeddings, query, precision=jax.lax.Precision.HIGHEST), top)


# ---------------------------------------------------------------------------------------------------------------------
# Building


def build(
    clip: Clip, folder: str | Path, out: str | Path, *, model: str | Path = "", batch_size: int = 64, progress: bool = True
) -> Report:
    """Indexes the pictures below `folder` into the directory `out`, or brings the index there up to date.

    Pictures are files with a picture's suffix, in nested folders too; hidden files and folders are left out. Files that
    are unchanged since an earlier call (size and time of change) are not read again, deleted ones are dropped, unreadable
    ones are skipped and listed.

    Args:
      model: where `clip` was loaded from, remembered so that a search can load it again.
      batch_size: how many pictures go through the model together.
      progress: show a progress bar.

    Raises SearchError if there is no picture that can be read, or if `out` holds something else, an index of another
    folder, or one made with other weights.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if not folder.is_dir():
        raise SearchError(f"{folder} is no folder")
    files, broken, ignored = _scan(folder, out)
    if not files:
        others = f"; it holds {_count(ignored)} of other kinds" if ignored else ""
        unreadable = f"; {len(broken)} could not be read" if broken else ""
        raise SearchError(f"{folder}: no pictures ({', '.join(IMAGE_SUFFIXES)}){others}{unreadable}")
    with _locked(out):
        store = _Store.prepare(out, clip, folder, str(model))
        reused = store.keep(files)
        waiting = [path for path in sorted(files) if path not in reused]
        with tqdm(total=len(files), initial=len(reused), unit="image", desc="index", disable=not progress) as bar:
            for paths, pictures, failures in _readable(clip, folder, waiting, batch_size):
                broken |= failures
                if paths:
                    store.add([{"path": path, **files[path]} for path in paths], clip.encode_image(pictures, batch_size))
                bar.update(len(paths) + len(failures))
        total = store.finish(broken)
    if not total:
        first = "; ".join(f"{shown(path)}: {why}" for path, why in list(broken.items())[:3])
        raise SearchError(f"{folder}: none of {len(files)} picture(s) can be read ({first})")
    return Report(total, total - len(reused), len(reused), store.dropped, broken, ignored)


def shown(path: str | os.PathLike) -> str:
    """A path as text that can be printed, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _scan(folder: Path, out: Path) -> tuple[dict[str, dict], dict[str, str], collections.Counter]:
    """Below `folder`: candidate path -> its size and time, unreadable path -> reason, other files by suffix."""
    files, broken, ignored = {}, {}, collections.Counter()

    def complain(error: OSError) -> None:
        broken[os.path.relpath(error.filename, folder)] = error.strerror or str(error)

    for parent, folders, names in os.walk(folder, onerror=complain):
        folders[:] = sorted(name for name in folders if name[0] != "." and Path(parent, name) != out)
        for name in sorted(names):
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix not in IMAGE_SUFFIXES:
                ignored[suffix or "no suffix"] += 1
                continue
            file = os.path.join(parent, name)
            path = os.path.relpath(file, folder)
            try:
                status = os.stat(file)
            except OSError as error:
                broken[path] = error.strerror or str(error)
                continue
            if stat.S_ISREG(status.st_mode):
                files[path] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
            else:  # opening a named pipe would wait for ever
                broken[path] = "not a regular file"
    return files, broken, ignored


def _readable(
    clip: Clip, folder: Path, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[list[str], list[np.ndarray], dict[str, str]]]:
    """Batches of `(paths, pictures, path -> reason for those that are broken)`, the next one read ahead."""

    def read(path: str) -> np.ndarray | BrokenSample:
        try:
            return clip.preprocess(folder / path)
        except BrokenSample as error:
            return error

    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        ahead = collections.deque()
        for chunk in [*chunks, None]:
            if chunk is not None:
                ahead.append((chunk, [readers.submit(read, path) for path in chunk]))
            if ahead and (len(ahead) > 1 or chunk is None):
                names, pending = ahead.popleft()
                found = dict(zip(names, [future.result() for future in pending], strict=True))
                good = [path for path in names if not isinstance(found[path], BrokenSample)]
                yield good, [found[path] for path in good], {p: str(found[p]) for p in names if p not in set(good)}


# ---------------------------------------------------------------------------------------------------------------------
# Storage


@dataclasses.dataclass
class _Store:
    """The index directory while it is being built. Rows gather in memory and are committed every few seconds."""

    directory: Path
    meta: dict
    entries: list[dict]  # what the parts named in `meta` hold
    rows: np.ndarray
    dropped: int = 0
    new_entries: list[dict] = dataclasses.field(default_factory=list)
    new_rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    committed: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def prepare(cls, directory: Path, clip: Clip, folder: Path, model: str) -> "_Store":
        meta = _read_meta(directory)
        if meta is None:
            meta = {
                "version": VERSION,
                "fingerprint": clip.fingerprint,
                "model": model or clip.name,
                "folder": str(folder),
                "dim": clip.encode_text([""]).shape[1],
                "parts": [],
                "next": 0,
                "complete": False,
            }
        if meta["fingerprint"] != clip.fingerprint:
            raise SearchError(
                f"{directory} was made with other weights: the index has fingerprint {meta['fingerprint'][:16]}… (of "
                f"{meta['model']}), the model {clip.name} has {clip.fingerprint[:16]}…. Choose another --out, or remove it"
            )
        if Path(meta["folder"]) != folder:
            raise SearchError(f"{directory} is the index of {meta['folder']}, not of {folder}: choose another --out, or remove it")
        entries, rows = _read_parts(directory, meta)
        store = cls(directory, meta, entries, rows)
        store.meta["complete"] = False
        store._write_meta()
        for leftover in directory.glob("part-*"):  # of a killed process
            if leftover.stem not in meta["parts"]:
                leftover.unlink()
        return store

    def keep(self, files: Mapping[str, Mapping]) -> set[str]:
        """Forgets entries whose file is gone or has changed; returns the paths of the others."""
        same = [files.get(e["path"]) == {"size": e["size"], "mtime_ns": e["mtime_ns"]} for e in self.entries]
        self.dropped = same.count(False)
        self.rows = self.rows[np.asarray(same, bool)]
        self.entries = [entry for entry, good in zip(self.entries, same, strict=True) if good]
        return {entry["path"] for entry in self.entries}

    def add(self, entries: list[dict], rows: np.ndarray) -> None:
        self.new_entries += entries
        self.new_rows.append(rows)
        if time.monotonic() - self.committed >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        rows = np.concatenate(self.new_rows)
        # A changed file is in an old part with its old size and time, too: the next `keep` tells them apart.
        self.meta["parts"].append(self._write_part(self.new_entries, rows))
        self._write_meta()
        self.entries += self.new_entries
        self.rows = np.concatenate([self.rows, rows])
        self.new_entries, self.new_rows = [], []
        self.committed = time.monotonic()

    def finish(self, broken: Mapping[str, str]) -> int:
        """Replaces all parts by a single sorted one; returns how many pictures it holds."""
        entries = self.entries + self.new_entries
        rows = np.concatenate([self.rows, *self.new_rows])
        order = sorted(range(len(entries)), key=lambda i: entries[i]["path"])
        before = self.meta["parts"]
        self.meta["parts"] = [self._write_part([entries[i] for i in order], rows[order])]
        _write(self.directory / _BROKEN, _lines({"path": path, "reason": why} for path, why in sorted(broken.items())))
        self.meta["complete"] = True
        self._write_meta()
        for part in before:
            (self.directory / f"{part}.npy").unlink()
            (self.directory / f"{part}.jsonl").unlink()
        return len(entries)

    def _write_part(self, entries: list[dict], rows: np.ndarray) -> str:
        part = f"part-{self.meta['next']:06d}"
        self.meta["next"] += 1
        with open(self.directory / f"{part}.npy", "wb") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
        _write(self.directory / f"{part}.jsonl", _lines(entries))
        return part

    def _write_meta(self) -> None:
        _write(self.directory / _META, json.dumps(self.meta, indent=2) + "\n")


def _read_meta(directory: Path) -> dict | None:
    """None if the directory is missing or empty; SearchError if it holds something else than an index."""
    file = directory / _META
    if not file.is_file():
        others = [p.name for p in directory.iterdir() if p.name not in (_LOCK, _META + ".new")] if directory.is_dir() else []
        if others or directory.is_file():
            held = ", ".join(shown(name) for name in sorted(others)[:4]) or "it is a file"
            raise SearchError(f"{directory} is no index ({held}): name a new directory, or one made by clip-jax index")
        return None
    try:
        meta = json.loads(file.read_text("utf-8"))
        version = meta["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise SearchError(f"{file} is not the description of an index ({error!r}): remove {directory} and index again") from error
    if version != VERSION:
        raise SearchError(f"{directory} is an index of version {version}; version {VERSION} is read here: index again")
    return meta


def _read_parts(directory: Path, meta: Mapping) -> tuple[list[dict], Float32[np.ndarray, "n dim"]]:
    entries, rows = [], [np.zeros((0, meta["dim"]), np.float32)]
    for part in meta["parts"]:
        try:
            found = np.load(directory / f"{part}.npy")
            lines = (directory / f"{part}.jsonl").read_text("utf-8").splitlines()
            described = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise SearchError(f"{directory}: {part} cannot be read ({error}): remove {directory} and index again") from error
        if found.shape != (len(described), meta["dim"]) or found.dtype != np.float32:
            raise SearchError(
                f"{directory}: {part}.npy is {found.dtype} {list(found.shape)} and {part}.jsonl names {len(described)} "
                f"picture(s) of dimension {meta['dim']}: remove {directory} and index again"
            )
        entries += described
        rows.append(found)
    return entries, np.concatenate(rows)


def _write(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all, whenever the process or the machine stops."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _lines(rows) -> str:
    # ASCII, so that names that are no valid UTF-8 survive as escapes.
    return "".join(json.dumps(row) + "\n" for row in rows)


def _count(ignored: Mapping[str, int]) -> str:
    return f"{sum(ignored.values())} file(s)"


@contextlib.contextmanager
def _locked(directory: Path):
    """One builder at a time; the system frees the lock of a process that dies."""
    if directory.is_file():
        raise SearchError(f"{directory} is a file: name a directory for the index")
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchError(f"{directory} is being built by another process: wait for it, or choose another --out") from error
        yield
