"""Files that users wrote: their bytes, and their text in whatever encoding it says of itself."""

import codecs
import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from train_jax import paths
from train_jax.data.errors import BrokenSample, DataError

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_WAITS = (0.1, 1.0, 5.0)  # seconds before each new try
# What is wrong with one file, not with the machine, its disks or its network.
_OF_ONE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
_OF_ONE_NAME = (errno.ELOOP, errno.ENAMETOOLONG)
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def retried(read: Callable[[], _Result], name: object, unreadable: type[Exception] = BrokenSample) -> _Result:
    """Calls `read()`, and again where the system, a disk or a network fails, which is no fault of a sample.

    Raises `unreadable` for a file that is not there or cannot be opened by this user, DataError if the failure stays.
    """
    for wait in (*_WAITS, None):
        try:
            return read()
        except (BrokenSample, DataError):
            raise
        except Exception as error:  # packages for storage have errors of their own
            if isinstance(error, _OF_ONE_FILE) or getattr(error, "errno", None) in _OF_ONE_NAME:
                raise unreadable(f"{name}: {getattr(error, 'strerror', None) or error}") from error
            if wait is None:
                raise DataError(f"{name} cannot be read, after {len(_WAITS) + 1} tries: {error}") from error
            log.warning("%s: %s; trying again", name, error)
            time.sleep(wait)


def read_bytes(file: str | os.PathLike) -> bytes:
    """Reads the bytes of a file. Raises as `retried` does."""
    return retried(paths.path(file).read_bytes, file)


def read_text(file: str | os.PathLike) -> str:
    r"""Reads the text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one; lines end in "\n".

    Raises DataError, with the offset of the first wrong byte, for text in another encoding; OSError for a file that is not
    there.
    """
    file = paths.path(file)
    try:
        return decode_text(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def read_arrays(file: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz by name. ValueError if it is damaged or lacks one, OSError if it cannot be opened."""
    with paths.path(file).open("rb") as stream:
        try:
            with np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names}
        except Exception as error:  # zip, zlib, tokenize and NumPy raise classes of their own
            raise ValueError(f"{type(error).__name__}: {error}") from error


def read_lines(file: str | os.PathLike) -> list[str]:
    """Reads the lines of a text file, stripped, without empty ones. Raises as `read_text` does."""
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def decode_text(data: bytes) -> str:
    """Decodes bytes as `read_text` does. Raises ValueError with the offset of the first wrong byte."""
    encoding, mark = next(((name, mark) for mark, name in _MARKS.items() if data.startswith(mark)), ("utf-8", b""))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {len(mark) + error.start} is not {encoding.upper()} ({error.reason}); save the file as UTF-8"
        ) from error
    if "\0" in text:  # as of UTF-16 without a mark, or of no text at all
        offset = len(mark) + len(text[: text.index("\0")].encode(encoding))
        raise ValueError(f"byte {offset} is zero, which no text in {encoding.upper()} has; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
