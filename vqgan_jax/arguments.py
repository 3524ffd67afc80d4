"""What command lines are told of prompts and of files to write; mistakes are found before any work begins."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from train_jax.errors import UserError


def places(**paths: str | None) -> None:
    """UserError for files that cannot be written, by the name of their option: before hours of work, not after them."""
    files = {name: Path(path) for name, path in paths.items() if path is not None}
    folder = files.pop("folder", None)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--folder {folder}: that is a file; name a folder")
    for name, path in files.items():
        if path.is_dir():
            raise UserError(f"--{name} {path}: that is a folder; name a file")
        if not path.resolve().parent.is_dir():
            raise UserError(f"--{name} {path}: there is no folder {path.parent}")
    for (name, path), (other, taken) in itertools.combinations(sorted(files.items()), 2):
        if path.resolve() == taken.resolve():
            raise UserError(f"--{name} and --{other} name the same file, {path.resolve()}")


def prompts(texts: Sequence[str]) -> list[str]:
    """Texts, with the lines that say something instead of @FILE. UserError for a file without any, or not in UTF-8."""
    return [line for text in texts for line in (_lines(text) if text[:1] == "@" else [text])]


def _lines(text: str) -> list[str]:
    file = Path(text[1:])
    try:
        found = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{text}: {file} is not UTF-8 ({error.reason}); save it as such") from error
    if not found:
        raise UserError(f"{text}: {file} has no line with a prompt")
    return found


def png(path: str, what: str, option: str = "--out") -> Path:
    """The path of a PNG to write; UserError for another suffix. `what` goes there, and `option` gave it, for the message."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{option} {path}: {what} is a PNG; name it so")
    return Path(path)
