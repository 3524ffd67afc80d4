"""Folders of pictures with their captions: a table, or a text file beside each picture.

A table is `captions.jsonl`, `.csv` or `.tsv`, or the hub's `metadata.jsonl` or `.csv`; its columns are `file` and `caption`,
or other usual names of these. Several rows for one picture are several captions.
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
_FILE = ("file", "file_name", "image", "filepath")  # ours, the hub's, LLaVA's and OpenCLIP's names of the column
_DELIMITERS = ",;\t|"
_NAMED = 5  # examples in a message


def read(folder: AnyPath) -> dict[str, list[str]]:
    """Reads captions by picture, a path relative to the folder; logs and leaves out those without a picture or a
    caption.

    Raises DataError where nothing is left, and for a table that is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"folder:{folder}: there is no such folder")
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"folder:{folder}: keep one of {', '.join(table.name for table in tables)}")
    try:
        pictures = {str(p.relative_to(folder)): p for p in paths.walk(folder) if p.suffix.lower() in IMAGE_SUFFIXES}
        captions_of = read_table(tables[0]) if tables else _read_neighbours(pictures)
    except OSError as error:
        raise DataError(f"folder:{folder}: {error}") from error
    missing = [name for name in captions_of if str(PurePosixPath(name)) not in pictures and not _is_file(folder, name)]
    for name in missing[:_NAMED]:
        log.warning("folder:%s: %r has a caption and no image", folder, name)
    if missing:
        log.warning("folder:%s: %d caption(s) without an image are left out", folder, len(missing))
    uncaptioned = sorted(set(pictures) - {str(PurePosixPath(name)) for name in captions_of})
    if uncaptioned:
        log.warning(
            "folder:%s: %d image(s) without a caption are left out: %s%s",
            folder, len(uncaptioned), ", ".join(map(repr, uncaptioned[:_NAMED])), ", …" if len(uncaptioned) > _NAMED else "",
        )  # fmt: skip
    if len(missing) == len(captions_of):
        raise DataError(
            f"folder:{folder}: no image with a caption ({len(pictures)} image(s) found). Captions stand in one of "
            f"{', '.join(TABLES)} (columns file, caption), or in a .txt beside each image"
        )
    return {name: captions_of[name] for name in sorted(set(captions_of) - set(missing))}


def _is_file(folder: AnyPath, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def _read_neighbours(pictures: Mapping[str, AnyPath]) -> dict[str, list[str]]:
    """Reads captions from the text files beside the pictures, one per line."""
    text_files = {name: picture.with_suffix(".txt") for name, picture in pictures.items()}
    captions_of = {name: files.read_lines(text) for name, text in text_files.items() if text.is_file()}
    return {name: lines for name, lines in captions_of.items() if lines}


def read_table(table: AnyPath) -> dict[str, list[str]]:
    """Reads a table: file name -> captions. Raises DataError with the line number of damage."""

    def damaged(line: int, why: object) -> DataError:
        return DataError(f"{table}, line {line}: {why}")

    text = files.read_text(table)
    if table.suffix == ".jsonl":
        rows = _json_rows(text, damaged)
    else:
        rows = _rows(_tab_separated(text) if table.suffix == ".tsv" else _comma_separated(text, damaged), damaged)
    captions_of: dict[str, list[str]] = {}
    for line, row in rows:
        name = next((row[key] for key in _FILE if row.get(key)), None)
        if not isinstance(name, str):
            raise damaged(line, "no file name; name the columns 'file' and 'caption'")
        try:
            texts, why = captions.of_row(row), ""
        except ValueError as error:
            texts, why = [], f": {error}"
        if texts:
            captions_of.setdefault(name, []).extend(texts)
        else:
            log.warning("%s, line %d: %r has no caption and is left out%s", table, line, name, why)
    return captions_of


def _json_rows(text: str, damaged: Callable) -> Iterator[tuple[int, Mapping]]:
    for line_number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = captions.parse_json(line)
        except ValueError as error:
            raise damaged(line_number, f"not JSON ({error})") from error
        if not isinstance(row, Mapping):
            raise damaged(line_number, "must be an object with 'file' and 'caption'")
        yield line_number, row


def _rows(lines: Iterator[tuple[int, list[str]]], damaged: Callable) -> Iterator[tuple[int, Mapping]]:
    """Yields the fields of each row by column name; the first line holds the names."""
    _, columns = next(lines, (1, []))
    for line_number, fields in lines:
        if len(fields) > len(columns):
            raise damaged(line_number, "more fields than columns; put a caption with commas in quotes")
        if any(fields):
            yield line_number, dict(zip(columns, fields, strict=False))


def _comma_separated(text: str, damaged: Callable) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and fields of each row; the delimiter is the one that isolates the column of files."""
    header = text.partition("\n")[0]
    delimiter = next((d for d in _DELIMITERS if set(_FILE) & set(next(csv.reader([header], delimiter=d), []))), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    while True:
        line_number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise damaged(line_number, f"{error}; is a quote left open?") from error
        if fields is None:
            return
        yield line_number, fields


def _tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and fields of each line; quotes that enclose a field, as spreadsheets write them, are
    removed.
    """
    for line_number, line in enumerate(text.split("\n"), 1):
        fields = [re.fullmatch(r'"((?:[^"]|"")*)"|(.*)', field) for field in line.split("\t")]
        yield line_number, [field[2] if field[1] is None else field[1].replace('""', '"') for field in fields]
