"""Reading of user files: bytes with retries, text with encoding detection, arrays."""

import codecs
import errno
import io
import logging
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from train_jax import paths
from train_jax.data.errors import BrokenSample, DataError

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_RETRY_DELAYS = (0.1, 1.0, 5.0)  # seconds before each retry
# Errors of a single file, as opposed to errors of the system, a disk or a network.
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
_FILE_ERRNOS = (errno.ELOOP, errno.ENAMETOOLONG)
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_with_retries(read: Callable[[], _Result], name: object, unreadable: type[Exception] = BrokenSample) -> _Result:
    """Calls `read()`, retrying on transient I/O errors.

    Args:
      name: name of the file for messages.
      unreadable: exception type for a file that is missing or that this user cannot open.

    Raises DataError if the last retry fails.
    """
    for delay in (*_RETRY_DELAYS, None):
        try:
            return read()
        except (BrokenSample, DataError):
            raise
        except Exception as error:  # storage libraries raise various classes
            if isinstance(error, _FILE_ERRORS) or getattr(error, "errno", None) in _FILE_ERRNOS:
                raise unreadable(f"{name}: {getattr(error, 'strerror', None) or error}") from error
            if delay is None:
                raise DataError(f"{name} cannot be read, after {len(_RETRY_DELAYS) + 1} tries: {error}") from error
            log.warning("%s: %s; trying again", name, error)
            time.sleep(delay)


def read_bytes(file: str | os.PathLike) -> bytes:
    """Reads the bytes of a file. Raises BrokenSample or DataError, like `read_with_retries`."""
    return read_with_retries(paths.path(file).read_bytes, file)


def read_text(file: str | os.PathLike) -> str:
    r"""Reads a text file in UTF-8, or in UTF-16 with a byte order mark, and converts line ends to "\n".

    Raises DataError, with the offset of the first invalid byte, for another encoding; OSError for a missing file.
    """
    file = paths.path(file)
    try:
        return decode_text(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def read_arrays(file: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file by name.

    Raises ValueError if the file is damaged or lacks an array, OSError if the file cannot be opened.
    """
    with paths.path(file).open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("not an .npz file")
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names}
        except Exception as error:  # zip, zlib, tokenize and NumPy raise various classes
            raise ValueError(f"{type(error).__name__}: {error}") from error


def read_array(file: str | os.PathLike) -> np.ndarray:
    """Reads the array of an .npy file, or the only one of an .npz file. Raises ValueError if that fails."""
    try:
        content = np.load(io.BytesIO(paths.path(file).read_bytes()), allow_pickle=False)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} could not be read: {error}") from error
    if isinstance(content, np.ndarray):
        return content
    if len(content.files) != 1:
        raise ValueError(f"{file} holds the arrays {', '.join(content.files) or 'none'}; it must hold one")
    return content[content.files[0]]


def read_lines(file: str | os.PathLike) -> list[str]:
    """Reads the non-empty lines of a text file, stripped. Raises DataError or OSError, like `read_text`."""
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def decode_text(data: bytes) -> str:
    """Decodes bytes like `read_text`. Raises ValueError with the offset of the first invalid byte."""
    marks = _BYTE_ORDER_MARKS.items()
    encoding, mark = next(((name, mark) for mark, name in marks if data.startswith(mark)), ("utf-8", b""))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {len(mark) + error.start} is not {encoding.upper()} ({error.reason}); save the file as UTF-8"
        ) from error
    if "\0" in text:  # such as UTF-16 without a byte order mark, or binary data
        offset = len(mark) + len(text[: text.index("\0")].encode(encoding))
        raise ValueError(f"byte {offset} is zero, which is invalid in {encoding.upper()} text; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
