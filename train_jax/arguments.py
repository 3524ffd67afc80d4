"""Checks and parsers for command-line arguments that several programs share."""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from train_jax.data.files import read_lines
from train_jax.errors import UserError

DTYPES = ("auto", "float32", "bfloat16")  # as `train_jax.compute.INFERENCE_DTYPES`, which imports JAX


def expand_home(argv: Sequence[str] | None = None) -> list[str]:
    """Expands `~` in arguments such as `--option=~/file`, which shells leave as it is.

    Args:
      argv: the arguments; None: those of this process.
    """
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        option, equals, value = word.partition("=")
        home = option.startswith("--") and value.startswith("~/")
        words.append(f"{option}={os.path.expanduser(value)}" if home else word)
    return words


def add_dtype(parser: argparse.ArgumentParser, default: str | None = "auto") -> None:
    """Adds the option `--dtype`, which `load` of every package has."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=default,
        help="precision of the model: bfloat16 halves memory and time on accelerators; auto (default): bfloat16 on "
        "accelerators that have it, float32 on a CPU",
    )


def check_outputs(**paths: str | None) -> None:
    """Raises UserError for output paths that cannot be written. Call this before long computations.

    Args:
      paths: option name -> path; None if the option is not set. `folder` is a directory, which may be missing.

    Invalid are a directory instead of a file or the reverse, a missing or read-only parent, and two equal paths.
    """
    outputs = {name: Path(path) for name, path in paths.items() if path is not None}
    for name, path in outputs.items():
        if name == "folder":
            check_folder(path, "--folder")
            continue
        if path.is_dir():
            raise UserError(f"--{name} {path}: that is a folder; name a file")
        if not path.resolve().parent.is_dir():
            raise UserError(f"--{name} {path}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UserError(f"--{name} {path}: no permission to write there")
    for (name, path), (other_name, other_path) in itertools.combinations(sorted(outputs.items()), 2):
        if path.resolve() == other_path.resolve():
            raise UserError(f"--{name} and --{other_name} name the same file, {path.resolve()}")


def check_folder(path: str | Path, option: str) -> None:
    """Raises UserError if a folder cannot be created or written to."""
    absolute = Path(path).resolve()
    existing = next(parent for parent in (absolute, *absolute.parents) if parent.exists())
    if not existing.is_dir():
        which = "that" if existing == absolute else f"{existing}"
        raise UserError(f"{option} {path}: {which} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option} {path}: no permission to write there")


def png(path: str, what: str, option: str = "--out") -> Path:
    """Returns the path of a PNG output. Raises UserError for another suffix.

    Args:
      what: description of the output for the error message.
      option: option name for the error message.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{option} {path}: {what} is a PNG; use the suffix .png")
    return Path(path)


def lines(texts: Sequence[str], what: str) -> list[str]:
    """Expands strings of the form `@FILE` to the non-blank lines of the file.

    Args:
      what: content of a line for error messages, such as "a prompt".

    Raises UserError for a file without such lines, DataError for a file in an unknown encoding, OSError for a file that
    cannot be opened.
    """
    return [line for text in texts for line in (_lines_of(text, what) if text[:1] == "@" else [text])]


def listed(text: str, what: str, option: str) -> list[str]:
    """Splits an option value into distinct entries, separated by commas or read from `@FILE`, one per line.

    Raises UserError if there are no entries.
    """
    entries = lines([text], what) if text[:1] == "@" else [part.strip() for part in text.split(",")]
    entries = list(dict.fromkeys(entry for entry in entries if entry))
    if not entries:
        raise UserError(f"{option} {text!r} has no entries: separate entries by commas, or write @FILE with {what} per line")
    return entries


def _lines_of(text: str, what: str) -> list[str]:
    """Reads the non-blank lines of `@FILE`. Raises UserError if there are none."""
    entries = read_lines(text[1:])
    if not entries:
        raise UserError(f"{text}: {text[1:]} has no line with {what}")
    return entries


def size(text: str) -> tuple[int, int]:
    """Parses a size such as "64x128" to (height, width); usable as a `type` of argparse."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: write height and width in pixels, such as 64x128")
    return int(sides[0]), int(sides[1])
