"""Paths that users name: local ones, and those of object storage (`gs://`, `s3://`) where its package is installed."""

import glob as local_glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from train_jax.errors import ConfigError

AnyPath = Path | epath.Path

_BESIDE = (".json", ".yaml", ".yml", ".txt", ".model", ".gz")  # configurations and vocabularies of a weight file
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}  # what opens each scheme


def path(name: str | os.PathLike) -> AnyPath:
    """Makes a path of `name`, with `~` expanded: `pathlib.Path`, or `epath.Path` for object storage.

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


def absolute(name: str | os.PathLike) -> AnyPath:
    """Makes an absolute path as `path` does, with links resolved."""
    absolute_path = path(name)
    return absolute_path.resolve() if isinstance(absolute_path, Path) else absolute_path


def run_directory(name: str | os.PathLike) -> AnyPath:
    """Makes an absolute path as `absolute` does.

    Raises ConfigError also for storage other than `gs://`, for whose arrays Orbax takes the local disk.
    """
    folder = absolute(name)
    if not isinstance(folder, Path) and not str(folder).startswith("gs://"):
        raise ConfigError(f"{folder}: checkpoints are kept in local folders and in gs:// alone; choose such a run directory")
    return folder


def on_disk(name: str | os.PathLike, option: str) -> Path:
    """Makes a path as `path` does, for files that are mapped into memory.

    Raises ConfigError that names `option` for object storage.
    """
    file = path(name)
    if not isinstance(file, Path):
        raise ConfigError(f"{file}: files that are mapped into memory lie on a local disk; name a folder there: {option}")
    return file


def cache() -> Path:
    """Returns this project's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "train_jax"


def stamp(file: AnyPath) -> list[int]:
    """Returns `[bytes, time of the last change]`, which differ once a file has changed."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns] if isinstance(file, Path) else [stat.length, stat.mtime]


def local(name: AnyPath) -> Path:
    """Returns a local file or folder: itself, or of one in object storage a copy in the cache, with a file's
    companions.
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
    """Copies the files below a folder."""
    for file in walk(folder):
        new = target / file.relative_to(folder)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(file.read_bytes())


def weights(name: str | os.PathLike) -> AnyPath:
    """Makes the path of a model: local (see `local`), unless it is a run directory, whose checkpoints may stay in
    storage.
    """
    model_path = path(name)
    return model_path if isinstance(model_path, Path) or (model_path / "checkpoints").is_dir() else local(model_path)


def remove(folder: AnyPath) -> None:
    """Removes a folder and its content, as far as possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.rmtree(missing_ok=True)


def walk(folder: AnyPath) -> Iterator[AnyPath]:
    """Lists the files below a folder. Raises OSError for a folder that cannot be read."""
    if not isinstance(folder, Path):
        filesystem, inside = _storage(folder)
        yield from (path(filesystem.unstrip_protocol(name)) for name in sorted(filesystem.find(inside)))
        return

    def stop(error: OSError) -> None:
        raise error

    for parent, _, names in walk_folders(folder, stop):
        yield from (file for file in (Path(parent, name) for name in sorted(names)) if os.path.isfile(file))


def walk_folders(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks as `os.walk` does and follows links to folders, except back to an ancestor."""
    ancestors = {str(folder): frozenset({os.path.realpath(folder)})}
    for parent, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        own_ancestors = ancestors.pop(parent)
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in own_ancestors)
        yield parent, folders, names
        ancestors |= {os.path.join(parent, name): own_ancestors | {real[name]} for name in folders}


def glob(pattern: str) -> list[AnyPath]:
    """Lists the files and folders that match a path with `*`, `?` or `[…]`, sorted."""
    start = path(pattern)
    if isinstance(start, Path):
        return [Path(name) for name in sorted(local_glob.glob(str(start)))]
    filesystem, inside = _storage(start)
    return [path(filesystem.unstrip_protocol(name)) for name in sorted(filesystem.glob(inside))]


def read_range(file: epath.Path, offset: int, size: int) -> bytes:
    """Reads `size` bytes of a file in object storage from `offset` on; fewer at its end."""
    filesystem, inside = _storage(file)
    return filesystem.cat_file(inside, start=offset, end=offset + size)


def _storage(name: epath.Path):
    """Returns fsspec's file system and the path in it."""
    import fsspec

    return fsspec.core.url_to_fs(str(name))
