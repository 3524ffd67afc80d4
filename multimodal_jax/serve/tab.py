"""What a tab of the page is: a form, the command line that does the same, and a function that runs it.

Fields also check what comes from the browser, where anything can be written.
"""

import argparse
import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_jax.serve.jobs import Job, Result
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.runs import KINDS, Runs
from train_jax.data.errors import BrokenSample
from train_jax.data.images import decode
from train_jax.errors import UserError

MAX_BYTES = 20 * 2**20  # of an uploaded picture
MAX_PIXELS = 50_000_000  # of an uploaded picture, which takes 150 MB when it is decoded
MAX_CHARACTERS = 1000  # of a text

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Text:
    """A line of text."""

    label: str
    default: str = ""
    optional: bool = False
    info: str = ""

    def check(self, value: Any, runs: Runs) -> str:
        """Returns the text without spaces around it. Raises UserError if it is too long, empty, or would name a file."""
        text = value if isinstance(value, str) else ""
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"{self.label}: {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
        if text[:1] == "@":
            raise UserError(f"{self.label}: {text[:20]!r} would name a file, as on the command line; start with a word")
        if not text.strip() and not self.optional:
            raise UserError(f"{self.label} is empty: write something")
        return text.strip()


@dataclasses.dataclass(frozen=True)
class Picture:
    """An uploaded picture, as the path of its file."""

    label: str
    optional: bool = False
    info: str = ""

    def check(self, value: Any, runs: Runs) -> str | None:
        """Returns the path of the file, or None without one. Raises UserError if the file is no picture or too large."""
        if not value:
            if self.optional:
                return None
            raise UserError(f"{self.label}: upload one first")
        path = Path(value)
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path.name}: {size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            decode(path, max_pixels=MAX_PIXELS)
        except BrokenSample as error:
            message = str(error).replace(str(path), path.name)
            raise UserError(message if message.startswith(path.name) else f"{path.name}: {message}") from error
        return str(path)


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in [least, most]; a whole one if the default is."""

    label: str
    default: float
    least: float
    most: float
    info: str = ""

    def check(self, value: Any, runs: Runs) -> float | int:
        """Returns the number. Raises UserError for other values, and outside of the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if isinstance(self.default, int) and is_number and value == int(value):
            value = int(value)
        if not is_number or not self.least <= value <= self.most or (isinstance(self.default, int) and value != int(value)):
            kind = "a whole number" if isinstance(self.default, int) else "a number"
            raise UserError(f"{self.label} = {value!r}; it must be {kind} in [{self.least:,}, {self.most:,}]")
        return value


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some words; the first is the default. `choices` may depend on the runs."""

    label: str
    choices: Sequence[str] | Callable[[Runs], Sequence[str]]
    info: str = ""

    def list_choices(self, runs: Runs) -> list[str]:
        """Returns the choices, the default first."""
        return list(self.choices(runs) if callable(self.choices) else self.choices)

    def check(self, value: Any, runs: Runs) -> str:
        """Returns the choice. Raises UserError for other values."""
        choices = self.list_choices(runs)
        if value not in choices:
            raise UserError(f"{self.label} = {value!r}; it must be one of {', '.join(choices)}")
        return value


def model(kind: str) -> Choice:
    """Makes a field for a run of this kind."""
    return Choice(KINDS[kind][0].upper() + KINDS[kind][1:], lambda runs: [str(path) for path in runs.paths[kind]])


SEED = Number("Seed", 0, 0, 2**32 - 1, "the same seed gives the same pictures")

Field = Text | Picture | Number | Choice


@dataclasses.dataclass(frozen=True)
class Tab:
    """A tab of the page.

    Attributes:
      title: name on the tab.
      text: what the tab does, in a sentence.
      needs: kinds of models that it needs, see `runs.KINDS`. Each is a field of this name.
      fields: further fields of the form, by name.
      button: name of the button.
      make_words: `values -> command line`, as words. Files are outputs in the current folder.
      run: `(models, values, job) -> result`.
      advanced: names of fields that are folded away at first.
      has_shares: whether results have probabilities of labels.
      is_shared: whether several users are answered together: `run` computes by `shared_models` alone.
    """

    title: str
    text: str
    needs: tuple[str, ...]
    fields: Mapping[str, Field]
    button: str
    make_words: Callable[[Values], list[str]]
    run: Callable[[Models, Values, Job], Result]
    advanced: tuple[str, ...] = ()
    has_shares: bool = False
    is_shared: bool = False

    @property
    def form(self) -> dict[str, Field]:
        """All fields by name, of which the models are the last."""
        return {**self.fields, **{kind: model(kind) for kind in self.needs}}

    def check(self, values: Values, runs: Runs) -> dict[str, Any]:
        """Returns the values of all fields, checked. Raises UserError, which names the field."""
        return {name: field.check(values.get(name), runs) for name, field in self.form.items()}


def options(**values: Any) -> list[str]:
    """Makes options of a command line from names and values; None: leaves an option out."""
    return [
        word
        for name, value in values.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    ]


def positional(*texts: str) -> list[str]:
    """Makes the last words of a command line, which are no options even if they start like one."""
    return [*(["--"] if any(text.startswith("-") for text in texts) else []), *texts]


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parses a command line without the name of the program. Raises UserError with the sentence of the parser."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return parser.parse_args(words)
    except SystemExit as error:
        raise UserError(message.getvalue().strip().rpartition("error: ")[2]) from error
