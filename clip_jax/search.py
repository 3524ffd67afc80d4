"""Image search by text or by image. `build` indexes a folder of images, `search` queries the index.

    build(clip, "photos", "photos.index")
    search(Index.open("photos.index"), clip, text="a dog on a beach", k=9)

`clip_jax.index_files` describes the files of an index.
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
    display_path,
    find_ivf_file,
    find_share_directories,
    get_share_directory,
    lock_index,
    read_meta,
    read_parts,
    remove_index,
)
from train_jax.data.images import IMAGE_SUFFIXES, BrokenSample
from train_jax.paths import walk_folders

_READERS = 8  # number of threads that decode images


@dataclasses.dataclass(frozen=True)
class Hit:
    """Search result: the path of an image, and its cosine similarity with the query, in [-1, 1]."""

    path: Path
    score: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of `build`.

    Attributes:
      indexed: number of images in the index.
      encoded: number of images encoded by this call.
      reused: number of images encoded by earlier calls.
      dropped: number of rows removed because the image file was deleted or has changed.
      broken: unreadable image files: path relative to the folder -> reason.
      ignored: number of files without an image suffix: suffix -> count.
    """

    indexed: int
    encoded: int
    reused: int
    dropped: int
    broken: Mapping[str, str]
    ignored: Mapping[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Image index in memory. Use `Index.open` to open an index.

    Attributes:
      directory: directory of the index files.
      folder: indexed folder of images.
      paths: paths of the images, relative to `folder`.
      embeddings: float32 or float16 [n, dim] of unit norm, one row per path.
      fingerprint: fingerprint of the weights that encoded the images.
      model: path or name of the model that encoded the images.
      complete: False if the last `build` was interrupted.
      ivf_file: file of the IVF index for approximate search; None if it is missing or outdated.
    """

    directory: Path
    folder: Path
    paths: tuple[str, ...]
    embeddings: Float[np.ndarray, "n dim"]
    fingerprint: str
    model: str
    complete: bool
    ivf_file: Path | None

    @classmethod
    def open(cls, directory: str | Path) -> "Index":
        """Opens an index. Raises SearchError if the index is missing, damaged or of another version."""
        directory = Path(directory)
        meta = read_meta(directory)
        if meta is None:
            raise SearchError(
                f"{directory}: no index found; make one with clip-jax index FOLDER --model DIR --out {directory}"
            )
        entries, rows = read_parts(directory, meta)
        # During an update, a changed file has two rows; the later row is current.
        row_of_path = {entry["path"]: row for row, entry in enumerate(entries)}
        return cls(
            directory,
            Path(meta["folder"]),
            tuple(row_of_path),
            rows[list(row_of_path.values())],
            meta["fingerprint"],
            meta["model"],
            meta["complete"],
            find_ivf_file(directory, meta),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def on_device(self) -> Float32[Array, "n dim"]:
        """Embeddings in float32 on the default device, copied once."""
        return jnp.asarray(self.embeddings, jnp.float32)

    @functools.cached_property
    def ivf_index(self) -> "nearest.IVFIndex | None":
        """IVF index for approximate search, opened once. None if `ivf_file` is None.

        Raises SearchError if the file is damaged or faiss is not installed.
        """
        if self.ivf_file is None:
            return None
        if not nearest.is_faiss_installed():
            raise SearchError(
                f"{self.directory} was made for approximate search, which needs faiss: pip install '.[faiss]', or search "
                "exactly"
            )
        try:
            return nearest.IVFIndex(self.ivf_file)
        except RuntimeError as error:
            raise SearchError(f"{self.ivf_file} cannot be read ({error}): index again, or search exactly") from error


def search(
    index: Index,
    clip: Clip,
    *,
    text: str | None = None,
    image: Picture | None = None,
    k: int = 9,
    exact: bool = False,
) -> list[Hit]:
    """Finds the `k` images of the index nearest to a text or an image, best first.

    Search is exact and runs on the device. An index built with `approximate` searches only the images in the IVF lists
    nearest to the query, unless `exact` is set.

    Raises SearchError if the index was built with other weights, if it is empty, if not exactly one of `text` and
    `image` is passed, or if `k` is not positive; raises BrokenSample if the query image cannot be read.
    """
    if (text is None) == (image is None):
        raise SearchError("search takes either a text or an image")
    if k < 1:
        raise SearchError(f"k = {k} must be at least 1")
    if not len(index):
        raise SearchError(f"{index.directory} holds no images: index its folder again")
    check_weights(
        index.directory, {"fingerprint": index.fingerprint, "model": index.model}, clip.name, clip.fingerprint
    )
    query = clip.encode_text([text]) if text is not None else clip.encode_image([image])
    if not exact and index.ivf_index is not None:
        scores, rows = index.ivf_index.search(index.embeddings, query[0], k)
    else:
        scores, rows = nearest.search_exact(index.on_device, query[0], min(k, len(index)))
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
    """Indexes the images below `folder` into the directory `out`, or updates the index there.

    Searches nested and linked folders for files with an image suffix; skips hidden files and folders. Files with
    unchanged size and mtime are not read again. Deleted files are removed from the index, unreadable files are skipped
    and listed in the report. After an interruption, the same call continues.

    Args:
      model: path or name of the model, stored for later searches; None: `clip.name`.
      batch_size: number of images per batch.
      half: store embeddings in float16: half the size, and an error of cosines below 1e-3.
      approximate: also write an IVF index for approximate search, for more than a million images. Needs faiss.
      progress: show a progress bar.
      part: `(i, n)`: encode only share i of n (i counts from 1), into a directory beside `out`, so that n machines
        can index in parallel. A call without `part` then merges the shares and encodes the remaining images.

    Raises SearchError if no image can be read, if `out` holds other files, an index of another folder or an index of
    other weights, or if faiss is needed and not installed.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if not folder.is_dir():
        raise SearchError(f"{display_path(folder)}: no such folder")
    if approximate and not nearest.is_faiss_installed():
        raise SearchError("approximate search needs faiss: pip install '.[faiss]'")
    shares = find_share_directories(out)
    files, broken, ignored = _scan(folder, {out, *shares})
    if not files:
        notes = f"; {sum(ignored.values())} file(s) of other kinds" if ignored else ""
        notes += f"; {_describe_first_broken(broken)}" if broken else ""
        raise SearchError(f"{display_path(folder)}: no images ({' '.join(IMAGE_SUFFIXES)}) in this folder{notes}")
    target, other_directories = out, shares
    if part is not None:
        target, other_directories = get_share_directory(out, *part), [out]
        files, broken = (
            {path: x for path, x in paths.items() if _is_in_share(path, *part)} for paths in (files, broken)
        )
    with contextlib.ExitStack() as locks:
        for directory in [target] if part else [target, *shares]:
            locks.enter_context(lock_index(directory))
        store = Store.prepare(
            target,
            other_directories,
            fingerprint=clip.fingerprint,
            model=str(model or clip.name),
            folder=folder,
            dim=clip.encode_text([""]).shape[1],
            dtype="float16" if half else "float32",
        )
        store.drop_stale(files)
        for directory in other_directories:
            store.merge(directory, files)
        reused = {entry["path"] for entry in store.entries}
        pending = [path for path in sorted(files) if path not in reused]
        with tqdm(total=len(files), initial=len(reused), unit="image", desc="index", disable=not progress) as bar:
            for paths, images, failures in _read_batches(clip, folder, pending, batch_size):
                broken |= failures
                if paths:
                    store.add([{"path": path, **files[path]} for path in paths], clip.encode_image(images, batch_size))
                bar.update(len(paths) + len(failures))
        total = store.finish(broken, approximate and part is None)
        for share in shares if part is None else ():
            remove_index(share)
    if not total and part is None:
        raise SearchError(f"{display_path(folder)}: no image can be read; {_describe_first_broken(broken)}")
    return Report(total, total - len(reused), len(reused), store.dropped, broken, ignored)


def _describe_first_broken(broken: Mapping[str, str]) -> str:
    path, reason = next(iter(broken.items()))
    return f"{len(broken)} cannot be read, such as {display_path(path)}: {reason}"


def _is_in_share(path: str, share: int, num_shares: int) -> bool:
    """Checks whether a path belongs to a share. Shares are assigned by hash, so adding images does not change them."""
    return zlib.crc32(os.fsencode(path)) % num_shares == share - 1


def _scan(folder: Path, indices: set[Path]) -> tuple[dict[str, dict], dict[str, str], collections.Counter]:
    """Scans a folder for images.

    Returns image path -> size and mtime, unreadable path -> reason, and suffix -> count of other files.
    """
    files, broken, ignored = {}, {}, collections.Counter()

    def record_error(error: OSError) -> None:
        broken[os.path.relpath(error.filename, folder)] = error.strerror

    for parent, folders, names in walk_folders(folder, record_error):
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
                broken[path] = "not a regular file"  # opening a named pipe would block forever
    return files, broken, ignored


def _read_batches(
    clip: Clip, folder: Path, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[list[str], list[np.ndarray], dict[str, str]]]:
    """Yields batches of `(paths, images, unreadable path -> reason)`. Reads one batch ahead in threads."""

    def read(path: str) -> np.ndarray | str:
        try:
            return clip.preprocess(folder / path)
        except BrokenSample as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        chunks = (paths[start : start + batch_size] for start in range(0, len(paths), batch_size))
        queue = collections.deque()
        for chunk in [*chunks, ()]:
            queue.append({path: pool.submit(read, path) for path in chunk})
            if len(queue) > 1:
                results = {path: future.result() for path, future in queue.popleft().items()}
                failures = {path: reason for path, reason in results.items() if isinstance(reason, str)}
                readable = [path for path in results if path not in failures]
                yield readable, [results[path] for path in readable], failures
