"""Paths as users name them: local ones, and those of object storage (`gs://`, `s3://`) where its package is installed."""

import glob as local_glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from train_jax.errors import ConfigError

AnyPath = Path | epath.Path

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}  # what opens each scheme


def path(name: str | os.PathLike) -> AnyPath:
    """The file or folder that `name` stands for, `~` expanded: `pathlib.Path`, or `epath.Path` for object storage.

    Raises ConfigError for a scheme that cannot be opened here.
    """
    text = os.fspath(name)
    # A pathlib.Path made of a URL has lost one slash.
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text) or re.match(rf"({'|'.join(_PACKAGES)}):/", text)
    if url is None:
        return Path(os.path.expanduser(text))
    scheme = url[1]
    if scheme not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES)
        raise ConfigError(f"{text}: there is no storage {scheme}:// here; name a local path, or one of {known}")
    import fsspec  # late: only storage needs it

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(f"{text}: {scheme}:// needs the package {_PACKAGES[scheme]}, which is not installed") from error
    return epath.Path(f"{scheme}://{text[url.end() :]}")


def cache() -> Path:
    """The folder in which this project keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "train_jax"


def stamp(file: AnyPath) -> list[int]:
    """`[bytes, time of the last change]`, which differ once a file has changed."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns] if isinstance(file, Path) else [stat.length, stat.mtime]


def local(file: AnyPath) -> Path:
    """The file itself, or a copy in the cache of one in object storage, for readers that need a local one."""
    if isinstance(file, Path):
        return file
    key = hashlib.sha256(f"{file} {stamp(file)}".encode()).hexdigest()[:32]
    copy = cache() / "files" / key / file.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        unfinished = copy.with_name(f"{copy.name}.{os.getpid()}")
        with file.open("rb") as source, unfinished.open("wb") as target:
            shutil.copyfileobj(source, target, 2**24)
        unfinished.replace(copy)
    return copy


def remove(folder: AnyPath) -> None:
    """Removes a folder and all in it, as far as that is possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.rmtree(missing_ok=True)


def walk(folder: AnyPath, _above: frozenset[str] = frozenset()) -> Iterator[AnyPath]:
    """The files below a folder, by name. Links to folders are followed, except back to a folder that holds them.

    Raises OSError for a folder that cannot be read.
    """
    if not isinstance(folder, Path):
        filesystem, inside = _storage(folder)
        yield from (path(filesystem.unstrip_protocol(name)) for name in sorted(filesystem.find(inside)))
        return
    above = _above | {os.path.realpath(folder)}
    for name in sorted(os.listdir(folder)):
        if os.path.isfile(folder / name):
            yield folder / name
        elif os.path.isdir(folder / name) and os.path.realpath(folder / name) not in above:
            yield from walk(folder / name, above)


def glob(pattern: str) -> list[AnyPath]:
    """The files and folders that match a path with `*`, `?` or `[…]`, sorted."""
    start = path(pattern)
    if isinstance(start, Path):
        return [Path(name) for name in sorted(local_glob.glob(str(start)))]
    filesystem, inside = _storage(start)
    return [path(filesystem.unstrip_protocol(name)) for name in sorted(filesystem.glob(inside))]


def read_range(file: epath.Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file in object storage from `offset` on; fewer where it ends."""
    filesystem, inside = _storage(file)
    return filesystem.cat_file(inside, start=offset, end=offset + size)


def _storage(name: epath.Path):
    """`(fsspec's file system, the path in it)`."""
    import fsspec

    return fsspec.core.url_to_fs(str(name))
