"""Folders of images with captions, in a table or in a text file beside each image.

A table is `captions.jsonl`, `.csv` or `.tsv`, or the Hugging Face Hub's `metadata.jsonl` or `.csv`. Its columns are `file`
and `caption`, or other common names. Several rows of one image are several captions.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

from train_jax import paths
from train_jax.data import captions, files
from train_jax.data.errors import DataError
from train_jax.data.images import IMAGE_SUFFIXES
from train_jax.paths import AnyPath

log = logging.getLogger(__name__)

TABLES = ("captions.jsonl", "captions.csv", "captions.tsv", "metadata.jsonl", "metadata.csv")
_FILE = ("file", "file_name", "image", "filepath")  # column names: ours, and those of the hub, LLaVA and OpenCLIP
_DELIMITERS = ",;\t|"
_MAX_LISTED = 5  # examples in a message


def read(folder: AnyPath) -> dict[str, list[str]]:
    """Reads the captions of a folder: image path relative to the folder -> captions.

    Images without captions and captions without images are logged and left out. Raises DataError for a damaged table, or
    if no captioned image remains.
    """
    if not folder.is_dir():
        raise DataError(f"folder:{folder}: there is no such folder")
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"folder:{folder}: keep one of {', '.join(table.name for table in tables)}")
    try:
        images = {str(p.relative_to(folder)): p for p in paths.walk(folder) if p.suffix.lower() in IMAGE_SUFFIXES}
        captions_of = read_table(tables[0]) if tables else _read_text_files(images)
    except OSError as error:
        raise DataError(f"folder:{folder}: {error}") from error
    missing = [name for name in captions_of if str(PurePosixPath(name)) not in images and not _is_file(folder, name)]
    for name in missing[:_MAX_LISTED]:
        log.warning("folder:%s: %r has a caption and no image", folder, name)
    if missing:
        log.warning("folder:%s: %d caption(s) without an image are left out", folder, len(missing))
    uncaptioned = sorted(set(images) - {str(PurePosixPath(name)) for name in captions_of})
    if uncaptioned:
        log.warning(
            "folder:%s: %d image(s) without a caption are left out: %s%s",
            folder,
            len(uncaptioned),
            ", ".join(map(repr, uncaptioned[:_MAX_LISTED])),
            ", …" if len(uncaptioned) > _MAX_LISTED else "",
        )
    if len(missing) == len(captions_of):
        raise DataError(
            f"folder:{folder}: no image with a caption ({len(images)} image(s) found). Captions must be in one of "
            f"{', '.join(TABLES)} (columns file, caption), or in a .txt beside each image"
        )
    return {name: captions_of[name] for name in sorted(set(captions_of) - set(missing))}


def _is_file(folder: AnyPath, name: str) -> bool:
    """Returns whether a name of a table is a file of the folder."""
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # the name is too long or invalid
        return False


def _read_text_files(images: Mapping[str, AnyPath]) -> dict[str, list[str]]:
    """Reads captions from the text files beside the images, one per line."""
    text_files = {name: image.with_suffix(".txt") for name, image in images.items()}
    captions_of = {name: files.read_lines(text) for name, text in text_files.items() if text.is_file()}
    return {name: lines for name, lines in captions_of.items() if lines}


def read_table(table: AnyPath) -> dict[str, list[str]]:
    """Reads a caption table: file name -> captions. Raises DataError with the number of the damaged line."""

    def make_error(line: int, reason: object) -> DataError:
        return DataError(f"{table}, line {line}: {reason}")

    text = files.read_text(table)
    if table.suffix == ".jsonl":
        rows = _parse_jsonl(text, make_error)
    else:
        lines = _parse_tsv(text) if table.suffix == ".tsv" else _parse_csv(text, make_error)
        rows = _name_columns(lines, make_error)
    captions_of: dict[str, list[str]] = {}
    for line, row in rows:
        name = next((row[key] for key in _FILE if row.get(key)), None)
        if not isinstance(name, str):
            raise make_error(line, "no file name; name the columns 'file' and 'caption'")
        try:
            texts, reason = captions.extract_row_captions(row), ""
        except ValueError as error:
            texts, reason = [], f": {error}"
        if texts:
            captions_of.setdefault(name, []).extend(texts)
        else:
            log.warning("%s, line %d: %r has no caption and is left out%s", table, line, name, reason)
    return captions_of


def _parse_jsonl(text: str, make_error: Callable) -> Iterator[tuple[int, Mapping]]:
    """Yields line number and object of each line of a JSON Lines file."""
    for line_number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = captions.parse_json(line)
        except ValueError as error:
            raise make_error(line_number, f"not JSON ({error})") from error
        if not isinstance(row, Mapping):
            raise make_error(line_number, "must be an object with 'file' and 'caption'")
        yield line_number, row


def _name_columns(lines: Iterator[tuple[int, list[str]]], make_error: Callable) -> Iterator[tuple[int, Mapping]]:
    """Yields line number and fields by column name of each row; the first line contains the column names."""
    _, columns = next(lines, (1, []))
    for line_number, fields in lines:
        if len(fields) > len(columns):
            raise make_error(line_number, "more fields than columns; put a caption with commas in quotes")
        if any(fields):
            yield line_number, dict(zip(columns, fields, strict=False))


def _parse_csv(text: str, make_error: Callable) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of each row of a CSV file.

    The delimiter is detected as the one that yields a header with a column of file names.
    """
    header = text.partition("\n")[0]
    delimiter = next((d for d in _DELIMITERS if set(_FILE) & set(next(csv.reader([header], delimiter=d), []))), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    while True:
        line_number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise make_error(line_number, f"{error}; is a quote left open?") from error
        if fields is None:
            return
        yield line_number, fields


def _parse_tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of each line of a TSV file, and removes quotes around fields."""
    for line_number, line in enumerate(text.split("\n"), 1):
        fields = [re.fullmatch(r'"((?:[^"]|"")*)"|(.*)', field) for field in line.split("\t")]
        yield line_number, [field[2] if field[1] is None else field[1].replace('""', '"') for field in fields]
