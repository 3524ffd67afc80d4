"""Local paths and paths in object storage (`gs://`, `s3://`, …)."""

import glob as local_glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath

from train_jax.errors import ConfigError

AnyPath = Path | epath.Path

_BESIDE = (".json", ".yaml", ".yml", ".txt", ".model", ".gz")  # configurations and vocabularies of a weight file
UNFINISHED = ".unfinished"  # suffix of temporary files, which a process that dies leaves behind
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}  # package of each scheme


def write_atomically(file: Path, write: Callable[[BinaryIO], object], folder: Path | None = None) -> None:
    """Writes a local file by `write(stream)`, so that it is either complete on disk or unchanged.

    Args:
      folder: folder of the temporary file, on the same file system; None: that of `file`.
    """
    unfinished = (folder or file.parent) / f"{file.name}.{os.getpid()}{UNFINISHED}"
    with unfinished.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


def replace_file(file: AnyPath, content: bytes) -> None:
    """Replaces the content of a file on a disk or in object storage. An interruption leaves the old file intact."""
    unfinished = file.parent / f"{file.name}{UNFINISHED}"
    unfinished.write_bytes(content)
    unfinished.replace(file)


def path(name: str | os.PathLike) -> AnyPath:
    """Parses a path and expands `~`: a `pathlib.Path`, or an `epath.Path` for object storage.

    Raises ConfigError for an unknown scheme, or if the package of the scheme is not installed.
    """
    text = os.fspath(name)
    # A pathlib.Path made from a URL has lost one slash.
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text) or re.match(rf"({'|'.join(_PACKAGES)}):/", text)
    if url is None:
        return Path(os.path.expanduser(text))
    scheme = url[1]
    if scheme not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES)
        raise ConfigError(f"{text}: there is no storage {scheme}:// here; use a local path, or one of {known}")
    import fsspec  # lazy import: needed for object storage only

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(f"{text}: {scheme}:// needs the package {_PACKAGES[scheme]}, which is not installed") from error
    return epath.Path(f"{scheme}://{text[url.end() :]}")


def absolute(name: str | os.PathLike) -> AnyPath:
    """Parses a path like `path`, makes it absolute and resolves symbolic links."""
    absolute_path = path(name)
    return absolute_path.resolve() if isinstance(absolute_path, Path) else absolute_path


def run_directory(name: str | os.PathLike) -> AnyPath:
    """Parses the path of a run directory like `absolute`.

    Raises ConfigError also for object storage other than `gs://`, which Orbax would treat as a local path.
    """
    folder = absolute(name)
    if not isinstance(folder, Path) and not str(folder).startswith("gs://"):
        raise ConfigError(f"{folder}: checkpoints are kept in local folders and in gs:// alone; choose such a run directory")
    return folder


def on_disk(name: str | os.PathLike, option: str) -> Path:
    """Parses a local path like `path`, for memory-mapped files.

    Raises ConfigError for object storage; the message names `option`.
    """
    file = path(name)
    if not isinstance(file, Path):
        raise ConfigError(f"{file}: memory-mapped files must be on a local disk; name a folder there: {option}")
    return file


def cache() -> Path:
    """Returns the cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "train_jax"


def stamp(file: AnyPath) -> list[int]:
    """Returns `[size in bytes, modification time]` of a file, to detect changes."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns] if isinstance(file, Path) else [stat.length, stat.mtime]


def local(name: AnyPath) -> Path:
    """Returns a local path for a file or folder. Object storage is copied to the cache folder.

    A file is copied together with the configuration and vocabulary files beside it.
    """
    if isinstance(name, Path):
        return name
    folder, files = name, list(walk(name))
    if not name.is_dir():
        folder = name.parent
        files = [file for file in folder.iterdir() if file == name or file.suffix in _BESIDE]
    key = hashlib.sha256(str([(str(file), stamp(file)) for file in sorted(files)]).encode()).hexdigest()[:32]
    copy = cache() / "files" / key
    for file in files:
        target = copy / file.relative_to(folder)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        with file.open("rb") as source, unfinished.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**24)
        unfinished.replace(target)
    return copy / name.relative_to(folder)


def copy(folder: Path, target: AnyPath) -> None:
    """Copies all files below a folder to another folder."""
    for file in walk(folder):
        new = target / file.relative_to(folder)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(file.read_bytes())


def weights(name: str | os.PathLike) -> AnyPath:
    """Returns the path of a model: a local path (see `local`), or a run directory in object storage."""
    model_path = path(name)
    return model_path if isinstance(model_path, Path) or (model_path / "checkpoints").is_dir() else local(model_path)


def remove(folder: AnyPath) -> None:
    """Removes a folder and its content, ignoring errors."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.rmtree(missing_ok=True)


def walk(folder: AnyPath) -> Iterator[AnyPath]:
    """Yields the files below a folder, sorted. Raises OSError for a folder that cannot be read."""
    if not isinstance(folder, Path):
        filesystem, inside = _storage(folder)
        yield from (path(filesystem.unstrip_protocol(name)) for name in sorted(filesystem.find(inside)))
        return

    def raise_error(error: OSError) -> None:
        raise error

    for parent, _, names in walk_folders(folder, raise_error):
        yield from (file for file in (Path(parent, name) for name in sorted(names)) if os.path.isfile(file))


def walk_folders(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks a folder like `os.walk`, following links to folders except links to an ancestor."""
    ancestors = {str(folder): frozenset({os.path.realpath(folder)})}
    for parent, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        own_ancestors = ancestors.pop(parent)
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in own_ancestors)
        yield parent, folders, names
        ancestors |= {os.path.join(parent, name): own_ancestors | {real[name]} for name in folders}


def glob(pattern: str) -> list[AnyPath]:
    """Lists the files and folders that match a pattern with `*`, `?` or `[…]`, sorted."""
    start = path(pattern)
    if isinstance(start, Path):
        return [Path(name) for name in sorted(local_glob.glob(str(start)))]
    filesystem, inside = _storage(start)
    return [path(filesystem.unstrip_protocol(name)) for name in sorted(filesystem.glob(inside))]


def read_range(file: epath.Path, offset: int, size: int) -> bytes:
    """Reads up to `size` bytes of a file in object storage, starting at `offset`."""
    filesystem, inside = _storage(file)
    return filesystem.cat_file(inside, start=offset, end=offset + size)


def _storage(name: epath.Path):
    """Returns the fsspec file system of a path and the path in this file system."""
    import fsspec

    return fsspec.core.url_to_fs(str(name))
