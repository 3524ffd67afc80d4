"""File format of an image index. Writes are crash-safe: the process that builds it may be killed at any moment.

    meta.json          version, fingerprint of the weights, model, folder, dimension, names of the parts, complete flag
    part-*.npy         float32 or float16 [n, dim] embeddings of unit norm
    part-*.jsonl       one object per row: path relative to the folder, size in bytes, mtime in nanoseconds
    part-*.faiss       the IVF index of the embeddings, for approximate search in a complete index
    broken.jsonl       files that could not be read: path and reason
    lock               file lock of the process that builds the index

Parts are written first; the index changes only when `meta.json`, which names the parts, is replaced. A complete index
has one part, sorted by path. When several machines share the work, each builds a separate index beside it, such as
`INDEX.2-of-4`; its rows are then copied into the main index.
"""

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from clip_jax import nearest
from train_jax import paths
from train_jax.errors import UserError

VERSION = 2
DTYPES = ("float32", "float16")
COMMIT_SECONDS = 5.0  # maximum amount of work that is lost if the process is killed
_META, _BROKEN, _LOCK = "meta.json", "broken.jsonl", "lock"


class SearchError(UserError):
    """Error for a folder that cannot be indexed, an index that cannot be opened, or an invalid query."""


def display_path(path: str | os.PathLike) -> str:
    """Converts a path to printable text. Bytes that are not valid UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def check_weights(directory: Path, meta: Mapping, name: str, fingerprint: str) -> None:
    """Raises SearchError, with both fingerprints, if the model `name` has other weights than the index."""
    if meta["fingerprint"] != fingerprint:
        raise SearchError(
            f"{directory} was made with other weights: the index has fingerprint {meta['fingerprint'][:16]} (of "
            f"{meta['model']}), the model {name} has {fingerprint[:16]}. Use the model that made the index, or index "
            "again in another directory"
        )


def is_index(directory: Path) -> bool:
    """Returns whether a directory holds the metadata of an index, readable or not."""
    return (directory / _META).is_file()


def read_meta(directory: Path) -> dict | None:
    """Reads the metadata of an index. Returns None if the directory is missing or empty.

    Raises SearchError if the directory holds other files, or an index of another version.
    """
    file = directory / _META
    if not file.is_file():
        names = []
        if directory.is_dir():
            names = sorted(p.name for p in directory.iterdir() if p.name != _LOCK and p.suffix != paths.UNFINISHED)
        if names or directory.is_file():
            content = f"it holds {', '.join(map(display_path, names[:4]))}" if names else "it is a file"
            raise SearchError(
                f"{display_path(directory)} is not an index: {content}. Name a directory made by clip-jax index, or a "
                "new one"
            )
        return None
    try:
        meta = json.loads(file.read_text("utf-8"))
        version = meta["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise SearchError(
            f"{file} is not the metadata of an index ({error!r}): remove {directory} and index again"
        ) from error
    if version != VERSION:
        raise SearchError(
            f"{directory} is an index of version {version}; this program reads version {VERSION}: index again"
        )
    return meta


def read_parts(directory: Path, meta: Mapping) -> tuple[list[dict], Float[np.ndarray, "n dim"]]:
    """Reads the entries and embeddings of all parts. Raises SearchError if a part is damaged."""
    entries, rows = [], [np.zeros((0, meta["dim"]), meta["dtype"])]
    for part in meta["parts"]:
        try:
            part_rows = np.load(directory / f"{part}.npy")
            part_entries = [json.loads(line) for line in (directory / f"{part}.jsonl").read_text("utf-8").splitlines()]
        except (OSError, ValueError, EOFError) as error:
            raise SearchError(
                f"{directory}: {part} cannot be read ({error}): remove {directory} and index again"
            ) from error
        if part_rows.shape != (len(part_entries), meta["dim"]) or part_rows.dtype != meta["dtype"]:
            raise SearchError(
                f"{directory}: {part}.npy is {part_rows.dtype} {list(part_rows.shape)} while {part}.jsonl describes "
                f"{len(part_entries)} image(s) of dimension {meta['dim']}: remove {directory} and index again"
            )
        entries += part_entries
        rows.append(part_rows)
    return entries, np.concatenate(rows)


def find_ivf_file(directory: Path, meta: Mapping) -> Path | None:
    """Returns the path of the IVF index of a complete index, or None if it does not exist."""
    file = directory / f"{meta['parts'][0]}.faiss" if meta.get("complete") else None
    return file if file and file.is_file() else None


@dataclasses.dataclass
class Store:
    """Index directory under construction. New rows are buffered in memory and committed every few seconds.

    Attributes:
      directory: directory of the index.
      meta: content of `meta.json`.
      entries, rows: metadata and embeddings of the committed rows whose image file is unchanged.
      dropped: number of rows dropped because their file was deleted or has changed.
    """

    directory: Path
    meta: dict
    entries: list[dict]
    rows: np.ndarray
    dropped: int = 0
    _new_entries: list[dict] = dataclasses.field(default_factory=list)
    _new_rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    _committed: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def prepare(
        cls,
        directory: Path,
        other_directories: Sequence[Path],
        *,
        fingerprint: str,
        model: str,
        folder: Path,
        dim: int,
        dtype: str,
    ) -> "Store":
        """Opens the index in `directory`, or creates a new index.

        `other_directories` are indices that will be merged into this one.
        Raises SearchError if an index has other weights, another folder or another precision.
        """
        meta = read_meta(directory)
        if meta is None:
            meta = {
                "version": VERSION,
                "fingerprint": fingerprint,
                "model": model,
                "folder": str(folder),
                "dim": dim,
                "dtype": dtype,
                "parts": [],
                "next": 0,
            }
        for path, path_meta in [(directory, meta), *((other, read_meta(other)) for other in other_directories)]:
            if path_meta is not None:
                _check_settings(path, path_meta, fingerprint=fingerprint, model=model, folder=str(folder), dtype=dtype)
        entries, rows = read_parts(directory, meta)
        store = cls(directory, meta | {"model": model, "complete": False}, entries, rows)
        store._write_meta()
        for file in directory.iterdir():  # what a killed process has left
            is_part = file.name.startswith("part-") and file.name.split(".")[0] not in meta["parts"]
            if is_part or file.suffix == paths.UNFINISHED:
                file.unlink()
        return store

    def drop_stale(self, files: Mapping[str, Mapping]) -> None:
        """Drops the rows of deleted and changed image files."""
        current = [_is_current(entry, files) for entry in self.entries]
        self.dropped = current.count(False)
        self.rows = self.rows[np.asarray(current, bool)]
        self.entries = [entry for entry, is_current in zip(self.entries, current, strict=True) if is_current]

    def merge(self, directory: Path, files: Mapping[str, Mapping]) -> None:
        """Copies rows from another index, if it exists. Only copies unchanged files without a row in this index."""
        meta = read_meta(directory)
        if meta is None:
            return
        entries, rows = read_parts(directory, meta)
        paths = {entry["path"] for entry in self.entries}
        new_rows = [
            row for row, entry in enumerate(entries) if entry["path"] not in paths and _is_current(entry, files)
        ]
        self.entries += [entries[row] for row in new_rows]
        self.rows = np.concatenate([self.rows, rows[new_rows]])

    def add(self, entries: Iterable[Mapping], rows: Float32[np.ndarray, "n dim"]) -> None:
        """Adds rows, rounded to the precision of the index. The next commit writes them to disk."""
        self._new_entries += entries
        self._new_rows.append(rows.astype(self.meta["dtype"]))
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        rows = np.concatenate(self._new_rows)
        self.meta["parts"].append(self._write_part(self._new_entries, rows))
        self._write_meta()
        self.entries += self._new_entries
        self.rows = np.concatenate([self.rows, rows])
        self._new_entries, self._new_rows = [], []
        self._committed = time.monotonic()

    def finish(self, broken: Mapping[str, str], approximate: bool) -> int:
        """Replaces all parts by one sorted part and returns the number of rows.

        Also writes `broken.jsonl`, and the IVF index if `approximate`.
        """
        entries = self.entries + self._new_entries
        rows = np.concatenate([self.rows, *self._new_rows])
        order = sorted(range(len(entries)), key=lambda i: entries[i]["path"])
        old_parts = self.meta["parts"]
        part = self._write_part([entries[i] for i in order], rows[order])
        if approximate and entries:
            nearest.write_ivf_index(self.directory / f"{part}.faiss", rows[order])
        self.meta["parts"] = [part]
        _write_text(
            self.directory / _BROKEN,
            _to_json_lines({"path": path, "reason": reason} for path, reason in sorted(broken.items())),
        )
        self.meta["complete"] = True
        self._write_meta()
        for part in old_parts:
            for file in self.directory.glob(f"{part}.*"):
                file.unlink()
        return len(entries)

    def _write_part(self, entries: Iterable[Mapping], rows: np.ndarray) -> str:
        part = f"part-{self.meta['next']:06d}"
        self.meta["next"] += 1
        paths.write_atomically(self.directory / f"{part}.npy", lambda stream: np.save(stream, rows))
        _write_text(self.directory / f"{part}.jsonl", _to_json_lines(entries))
        return part

    def _write_meta(self) -> None:
        _write_text(self.directory / _META, json.dumps(self.meta, indent=2) + "\n")


def _check_settings(directory: Path, meta: Mapping, *, fingerprint: str, model: str, folder: str, dtype: str) -> None:
    check_weights(directory, meta, model, fingerprint)
    if meta["folder"] != folder:
        raise SearchError(
            f"{directory} is the index of {display_path(meta['folder'])}, not of {display_path(folder)}: choose another "
            "directory, or remove this one"
        )
    if meta["dtype"] != dtype:
        raise SearchError(
            f"{directory} holds {meta['dtype']}, not {dtype}: index with the same precision, or in another directory"
        )


def _is_current(entry: Mapping, files: Mapping[str, Mapping]) -> bool:
    """Checks whether the image file of a row exists and is unchanged."""
    return files.get(entry["path"]) == {"size": entry["size"], "mtime_ns": entry["mtime_ns"]}


def _write_text(path: Path, text: str) -> None:
    paths.write_atomically(path, lambda stream: stream.write(text.encode()))


def _to_json_lines(rows: Iterable[Mapping]) -> str:
    # ASCII output: file names that are not valid UTF-8 are stored as escapes.
    return "".join(json.dumps(row) + "\n" for row in rows)


def get_share_directory(directory: Path, share: int, num_shares: int) -> Path:
    """Returns the directory of the index that machine `share` of `num_shares` builds. `share` counts from 1."""
    return directory.with_name(f"{directory.name}.{share}-of-{num_shares}")


def find_share_directories(directory: Path) -> list[Path]:
    """Lists the directories of all shares of an index."""
    candidates = directory.parent.glob(f"{glob.escape(directory.name)}.*")
    return sorted(path for path in candidates if re.fullmatch(r"\.\d+-of-\d+", path.name.removeprefix(directory.name)))


def remove_index(directory: Path) -> None:
    """Removes an index. After an interruption, the directory still holds a valid index or is empty."""
    meta = read_meta(directory)
    if meta is not None:
        _write_text(directory / _META, json.dumps(meta | {"parts": [], "complete": False}))
    for file in sorted(directory.iterdir(), key=lambda file: file.name == _META):
        file.unlink()
    directory.rmdir()


@contextlib.contextmanager
def lock_index(directory: Path) -> Iterator[None]:
    """Creates the directory of an index and locks it for this process.

    Raises SearchError if another process holds the lock. The lock is released when its process ends.
    """
    if directory.is_file():
        raise SearchError(f"{directory} is a file: name a directory for the index")
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchError(
                f"{directory} is being built by another process: wait for it, or choose another one"
            ) from error
        yield
