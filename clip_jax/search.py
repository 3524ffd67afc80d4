"""Search a folder of pictures by text or by picture: `build` makes an index of it, `search` asks the index.

    build(clip, "photos", "photos.index")
    search(Index.open("photos.index"), clip, text="a dog on a beach", top=9)

`clip_jax.index_files` says how an index is stored.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32
from tqdm import tqdm

from clip_jax import nearest
from clip_jax.clip import Clip, Picture
from clip_jax.index_files import (
    SearchError,
    Store,
    check_weights,
    clusters_file,
    discard,
    locked,
    read_meta,
    read_parts,
    share_directories,
    share_directory,
    shown,
)
from train_jax.data.images import IMAGE_SUFFIXES, BrokenSample
from train_jax.paths import walk_folders

_READERS = 8  # threads that decode pictures


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
      encoded, reused, dropped: pictures that this call encoded, that it took over from earlier ones, and that it removed
        because their file is gone or has changed.
      broken: path relative to the folder -> reason, for files that look like pictures and cannot be read.
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
      embeddings: float32 or float16 [n, dim] of unit norm, a row a path.
      fingerprint: of the weights that made it.
      model: where these were loaded from.
      complete: False if the last `build` was interrupted.
      clusters_file: for approximate search; None if it was made without, or has changed since.
    """

    directory: Path
    folder: Path
    paths: tuple[str, ...]
    embeddings: Float[np.ndarray, "n dim"]
    fingerprint: str
    model: str
    complete: bool
    clusters_file: Path | None

    @classmethod
    def open(cls, directory: str | Path) -> "Index":
        """Reads an index. Raises SearchError if there is none, a damaged one, or one of another version."""
        directory = Path(directory)
        meta = read_meta(directory)
        if meta is None:
            raise SearchError(
                f"{directory}: no index here; make one with clip-jax index FOLDER --model DIR --out {directory}"
            )
        entries, rows = read_parts(directory, meta)
        # While an update is unfinished, a changed file has two rows: the later one is true.
        last = {entry["path"]: row for row, entry in enumerate(entries)}
        return cls(
            directory,
            Path(meta["folder"]),
            tuple(last),
            rows[list(last.values())],
            meta["fingerprint"],
            meta["model"],
            meta["complete"],
            clusters_file(directory, meta),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def on_device(self) -> Float32[Array, "n dim"]:
        """The embeddings on the default device, copied there once, as the numbers that a search multiplies."""
        return jnp.asarray(self.embeddings, jnp.float32)

    @functools.cached_property
    def clusters(self) -> "nearest.Clusters | None":
        """The clusters for an approximate search, if the index was made with them; opened once.

        Raises SearchError if they are damaged, or faiss is missing.
        """
        if self.clusters_file is None:
            return None
        if not nearest.installed():
            raise SearchError(
                f"{self.directory} was made for approximate search, which needs faiss: pip install '.[faiss]', or search "
                "exactly"
            )
        try:
            return nearest.Clusters(self.clusters_file)
        except RuntimeError as error:
            raise SearchError(
                f"{self.clusters_file} cannot be read ({error}): index again, or search exactly"
            ) from error


def search(
    index: Index,
    clip: Clip,
    *,
    text: str | None = None,
    image: Picture | None = None,
    top: int = 9,
    exact: bool = False,
) -> list[Hit]:
    """The `top` pictures of the index closest to a text or to a picture, best first.

    A search is exact and on the device, unless the index was made with `approximate`: then among the pictures of the
    clusters nearest to the query, and `exact` asks for all.

    Raises SearchError if other weights made the index, if it is empty, if not exactly one of `text` and `image` is given,
    or if `top` is not positive; BrokenSample if the picture cannot be read.
    """
    if (text is None) == (image is None):
        raise SearchError("search takes a text or an image: one of them")
    if top < 1:
        raise SearchError(f"top = {top} must be at least 1")
    if not len(index):
        raise SearchError(f"{index.directory} holds no pictures: index its folder again")
    check_weights(
        index.directory, {"fingerprint": index.fingerprint, "model": index.model}, clip.name, clip.fingerprint
    )
    query = clip.encode_text([text]) if text is not None else clip.encode_image([image])
    if not exact and index.clusters is not None:
        scores, rows = index.clusters.nearest(index.embeddings, query[0], top)
    else:
        scores, rows = nearest.exact(index.on_device, query[0], min(top, len(index)))
    return [
        Hit(index.folder / index.paths[row], float(score))
        for row, score in zip(np.asarray(rows), np.asarray(scores), strict=True)
    ]


def build(
    clip: Clip,
    folder: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    batch_size: int = 64,
    half: bool = False,
    approximate: bool = False,
    progress: bool = True,
    part: tuple[int, int] | None = None,
) -> Report:
    """Indexes the pictures below `folder` into the directory `out`, or brings the index there up to date.

    Pictures are files with a picture's suffix, nested and linked folders included, hidden ones left out. A file whose size
    and time of change are as before is not read again, a deleted one is dropped, an unreadable one is skipped and listed.
    Killed at any moment, the same call goes on.

    Args:
      model: where `clip` was loaded from, remembered so that a search can load it again; None: its name.
      batch_size: how many pictures go through the model together.
      half: keep embeddings in float16: half the size, and cosines that are right to 1e-3.
      approximate: also sort the embeddings into clusters, so that a search looks at a few of these only. For collections
        above a million; needs faiss.
      progress: show a progress bar.
      part: `(i, n)`: encode only number i of n shares of the pictures, into a directory beside `out`; i counts from 1. So n
        machines index at once; a call without `part` then joins their shares, and encodes what is missing.

    Raises SearchError if no picture can be read, if `out` holds something else, an index of another folder, or one made by
    other weights, or if faiss is needed and missing.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if not folder.is_dir():
        raise SearchError(f"{shown(folder)}: no such folder")
    if approximate and not nearest.installed():
        raise SearchError("approximate search needs faiss: pip install '.[faiss]'")
    shares = share_directories(out)
    files, broken, ignored = _scan(folder, {out, *shares})
    if not files:
        notes = f"; {sum(ignored.values())} file(s) of other kinds" if ignored else ""
        notes += f"; {_first(broken)}" if broken else ""
        raise SearchError(f"{shown(folder)}: no pictures ({' '.join(IMAGE_SUFFIXES)}) in it{notes}")
    target, others = out, shares
    if part is not None:
        target, others = share_directory(out, *part), [out]
        files, broken = ({path: x for path, x in some.items() if _in_share(path, *part)} for some in (files, broken))
    with contextlib.ExitStack() as locks:
        for directory in [target] if part else [target, *shares]:
            locks.enter_context(locked(directory))
        store = Store.prepare(
            target,
            others,
            fingerprint=clip.fingerprint,
            model=str(model or clip.name),
            folder=folder,
            dim=clip.encode_text([""]).shape[1],
            dtype="float16" if half else "float32",
        )
        store.keep(files)
        for directory in others:
            store.adopt(directory, files)
        reused = {entry["path"] for entry in store.entries}
        waiting = [path for path in sorted(files) if path not in reused]
        with tqdm(total=len(files), initial=len(reused), unit="image", desc="index", disable=not progress) as bar:
            for paths, pictures, failures in _read(clip, folder, waiting, batch_size):
                broken |= failures
                if paths:
                    store.add(
                        [{"path": path, **files[path]} for path in paths], clip.encode_image(pictures, batch_size)
                    )
                bar.update(len(paths) + len(failures))
        total = store.finish(broken, approximate and part is None)
        for share in shares if part is None else ():
            discard(share)
    if not total and part is None:
        raise SearchError(f"{shown(folder)}: no picture can be read; {_first(broken)}")
    return Report(total, total - len(reused), len(reused), store.dropped, broken, ignored)


def _first(broken: Mapping[str, str]) -> str:
    path, why = next(iter(broken.items()))
    return f"{len(broken)} cannot be read, such as {shown(path)}: {why}"


def _in_share(path: str, number: int, count: int) -> bool:
    """By the path alone, so that shares stay the same when pictures are added."""
    return zlib.crc32(os.fsencode(path)) % count == number - 1


def _scan(folder: Path, indices: set[Path]) -> tuple[dict[str, dict], dict[str, str], collections.Counter]:
    """Below `folder`: picture -> its size and time, unreadable path -> reason, number of other files by suffix."""
    files, broken, ignored = {}, {}, collections.Counter()

    def complain(error: OSError) -> None:
        broken[os.path.relpath(error.filename, folder)] = error.strerror

    for parent, folders, names in walk_folders(folder, complain):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name) not in indices]
        for name in names:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix not in IMAGE_SUFFIXES:
                ignored[suffix or "no suffix"] += 1
                continue
            path = os.path.relpath(os.path.join(parent, name), folder)
            try:
                status = os.stat(folder / path)
            except OSError as error:
                broken[path] = error.strerror
                continue
            if stat.S_ISREG(status.st_mode):
                files[path] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
            else:
                broken[path] = "not a regular file"  # opening a named pipe would wait for ever
    return files, broken, ignored


def _read(
    clip: Clip, folder: Path, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[list[str], list[np.ndarray], dict[str, str]]]:
    """Batches of `(paths, pictures, path -> reason for the broken ones)`; the next is read while one is used."""

    def read(path: str) -> np.ndarray | str:
        try:
            return clip.preprocess(folder / path)
        except BrokenSample as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        chunks = (paths[start : start + batch_size] for start in range(0, len(paths), batch_size))
        ahead = collections.deque()
        for chunk in [*chunks, ()]:
            ahead.append({path: readers.submit(read, path) for path in chunk})
            if len(ahead) > 1:
                found = {path: future.result() for path, future in ahead.popleft().items()}
                failures = {path: why for path, why in found.items() if isinstance(why, str)}
                good = [path for path in found if path not in failures]
                yield good, [found[path] for path in good], failures
