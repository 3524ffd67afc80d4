"""Arguments that command lines share: files to write, files of lines. Mistakes are found before any work begins."""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from train_jax.data.files import read_lines
from train_jax.errors import UserError


def expanded(argv: Sequence[str] | None = None) -> list[str]:
    """Expands the `~` of `--option=~/file` in a command line (None: this process's); shells do not."""
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        option, equals, value = word.partition("=")
        home = option.startswith("--") and value.startswith("~/")
        words.append(f"{option}={os.path.expanduser(value)}" if home else word)
    return words


def check_outputs(**paths: str | None) -> None:
    """Refuses files that cannot be written: before hours of work, not after them.

    Args:
      paths: by the name of their option; None: not asked for. `folder` is a folder, which may be missing.

    UserError for a folder where a file belongs or the reverse, a missing or read-only parent, one file named twice.
    """
    files = {name: Path(path) for name, path in paths.items() if path is not None}
    if "folder" in files:
        check_folder(files.pop("folder"), "--folder")
    for name, path in files.items():
        if path.is_dir():
            raise UserError(f"--{name} {path}: that is a folder; name a file")
        if not path.resolve().parent.is_dir():
            raise UserError(f"--{name} {path}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UserError(f"--{name} {path}: no permission to write there")
    for (name, path), (other, same) in itertools.combinations(sorted(files.items()), 2):
        if path.resolve() == same.resolve():
            raise UserError(f"--{name} and --{other} name the same file, {path.resolve()}")


def check_folder(path: str | Path, option: str) -> None:
    """Raises UserError for a folder that cannot be made or written to."""
    absolute = Path(path).resolve()
    existing = next(parent for parent in (absolute, *absolute.parents) if parent.exists())
    if not existing.is_dir():
        which = "that" if existing == absolute else f"{existing}"
        raise UserError(f"{option} {path}: {which} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option} {path}: no permission to write there")


def png(path: str, what: str, option: str = "--out") -> Path:
    """Returns the path of a PNG to write; UserError for another suffix. `what` and `option` are for the message."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{option} {path}: {what} is a PNG; name it so")
    return Path(path)


def lines(texts: Sequence[str], what: str) -> list[str]:
    """Expands texts of the form `@FILE` to the lines of the file that are not blank.

    Args:
      what: a line holds, for messages, such as "a prompt".

    UserError for a file without such lines, DataError for one of an unknown encoding, OSError for one that cannot be opened.
    """
    return [line for text in texts for line in (_lines_of(text, what) if text[:1] == "@" else [text])]


def listed(text: str, what: str, option: str) -> list[str]:
    """Splits an option into distinct entries: separated by commas, or `@FILE` with one per line.

    UserError if there are none.
    """
    entries = lines([text], what) if text[:1] == "@" else [part.strip() for part in text.split(",")]
    entries = list(dict.fromkeys(entry for entry in entries if entry))
    if not entries:
        raise UserError(f"{option} {text!r} names none: separate entries by commas, or write @FILE with {what} a line")
    return entries


def _lines_of(text: str, what: str) -> list[str]:
    entries = read_lines(text[1:])
    if not entries:
        raise UserError(f"{text}: {text[1:]} has no line with {what}")
    return entries


def size(text: str) -> tuple[int, int]:
    """Parses "64x128" to (height, width); a type for `argparse`."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: write height and width in pixels, such as 64x128")
    return int(sides[0]), int(sides[1])
