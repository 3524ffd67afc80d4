"""The command of every benchmark: prints rows as a table, and stores each at once."""

import argparse
import ast
import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.results import Device, Record, Row, Run
from train_jax.data.errors import BrokenSample
from train_jax.errors import UserError

COLUMNS = ("measured", "by", "value", "spread", "unit", "ours is", "settings")


def main(
    rows: Callable[[argparse.Namespace], Iterator[Row]],
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    argv: Sequence[str] | None = None,
    describe: Callable[[str], tuple[Device, Run]] = results.describe,
) -> None:
    """Runs a benchmark as a command.

    Args:
      rows: the benchmark. Its module's name is that of the benchmark, and the module's docstring is the help text.
      add_arguments: function that adds the arguments of the benchmark.
      argv: arguments; None: those of the process.
      describe: function from the commit (or "") to the device and the conditions of a row, called after the first one.
    """
    module = inspect.getmodule(rows)
    name = Path(module.__file__).stem
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.{name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, metavar="FOLDER",
                        help=f"folder of the file of this device (default {results.FOLDER}; of --tiny: none)")  # fmt: skip
    parser.add_argument("--commit", default="", help="commit of the code (default: git's)")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    tiny = getattr(arguments, "tiny", False)
    folder = arguments.results or (None if tiny else results.FOLDER)
    device = None
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        for row in rows(arguments):
            if device is None:
                device, run = describe(arguments.commit)
                print(f"{name} on {device.name}\n| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
            row = dataclasses.replace(row, settings=row.settings | {"toy": "yes"}) if tiny else row
            print(f"| {' | '.join(format_row(row))} |", flush=True)
            if folder:
                results.store(folder, device, Record(name, row, run))
    except (UserError, BrokenSample, OSError) as error:
        print(f"python -m benchmarks.{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def positive(text: str) -> int:
    """Parses an argument that is an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; it must be at least 1")
    return value


def parse_option(text: str) -> tuple[str, object]:
    """Parses a `name=value` argument, with a Python literal or a string as value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r}: write NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def format_row(row: Row) -> list[str]:
    """Formats the cells of a row."""
    ratio = f"{row.ratio:.2f} times as fast" if row.ratio else ""
    value = format_number(row.value) if row.value is not None else row.note
    return [row.name, row.by, value, format_spread(row), row.unit, ratio, format_settings(row.settings)]


def format_settings(settings: dict) -> str:
    """Formats settings as "batch 16, dtype float32"."""
    return ", ".join(f"{name} {x:,}" if isinstance(x, int) else f"{name} {x}" for name, x in settings.items())


def format_spread(row: Row) -> str:
    """Formats the least and the largest value over rounds; "" for a value that does not vary."""
    return "" if row.low is None else f"{format_number(row.low)} to {format_number(row.high)}"


def format_number(x: float) -> str:
    """Formats a number with at least three digits; whole numbers exactly."""
    if not math.isfinite(x):
        return str(x)
    if x == int(x):
        return f"{x:,.0f}"
    if abs(x) < 1e-3:
        return f"{x:.1e}"
    digits = next(digits for digits in range(6) if abs(x) >= 100 / 10**digits)
    return f"{x:,.{digits}f}"
