"""Tables of runs as text: aligned for a terminal, and Markdown."""

import html
import math
import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

import pandas as pd

from train_jax.runs.tables import list_results

MARKS = {"finished": "✓", "unfinished": "…", "failed": "✗", "damaged": "!", "empty": "∅", "evaluated": "="}

_NAMES = {
    "seconds": "time", "examples_per_second": "examples/s", "mfu": "MFU", "peak_bytes": "memory", "flops": "FLOPs",
}  # fmt: skip
_ALWAYS = ("run", "status", "step")
_NEVER = ("error", "path")  # errors are listed below the table
_WIDTH = 120  # characters of a table in a narrower terminal, and in a file
_LONGEST = 28  # characters of a cell
_LONGEST_RUN = 40
_GAP = "  "


def choose_width() -> int:
    """Returns the number of characters of a table: that of the terminal, but at least 120, also in a file."""
    return max(_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns)


def select_columns(frame: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Selects the columns that tell runs apart. Returns them, and the values of those that are equal in all runs.

    Results and the columns of a single run are always selected, empty columns never.
    """
    options, results = frame.attrs["options"], list_results(frame)
    selected, constant = [], {}
    for name in frame.columns:
        if name in _NEVER:
            continue
        texts = {format_cell(name, value) for value in frame[name]}
        if name in _ALWAYS or name in options or (texts != {""} and (len(texts) > 1 or len(frame) == 1 or name in results)):
            selected.append(name)
        elif texts != {""}:
            constant[name] = texts.pop()
    return selected, constant


def format_table(frame: pd.DataFrame, width: int) -> str:
    """Formats a table of runs as aligned text, with the errors of the runs below it.

    Columns that are equal in all runs are told in one line. Of the others as many are shown as fit into `width` characters:
    first options, final values and time, then best values, speed and memory, then the rest.
    """
    columns, constant = select_columns(frame)
    cells = {name: [header_of(name), *(_shorten(name, format_cell(name, x)) for x in frame[name])] for name in columns}
    options, results = frame.attrs["options"], list_results(frame)

    def importance(name: str) -> int:
        if name in (*_ALWAYS, *options):
            return 0
        if name in results:
            return 3 if name.endswith(" (best step)") else 2 if name.endswith(")") else 1
        return 1 if name == "seconds" else 2 if name in _NAMES else 3

    shown, total = set(), -len(_GAP)
    for name in sorted(columns, key=importance):  # stable: of equal importance from left to right
        size = max(map(_width, cells[name])) + len(_GAP)
        if name in ("run", "status") or total + size <= width:
            shown.add(name)
            total += size
    lines = align(list(zip(*(cells[name] for name in columns if name in shown), strict=True)))
    if constant:
        lines.append(f"in all runs: {', '.join(f'{header_of(name)} {text}' for name, text in constant.items())}")
    if missing := [header_of(name) for name in columns if name not in shown]:
        lines.append(f"not shown: {', '.join(missing)} (--csv)")
    for row in frame.to_dict("records"):
        if isinstance(row["error"], str):
            lines.append(f"{MARKS[row['status']]} {printable(row['run'])}: {printable(row['error'])}")
    return "\n".join(lines)


def format_summary(frame: pd.DataFrame) -> str:
    """Formats a summary (see `train_jax.runs.summary`) as aligned text, below the metric."""
    cells = [[format_cell(name, x) for x in frame[name]] for name in frame.columns]
    lines = align([[header_of(name) for name in frame.columns], *zip(*cells, strict=True)])
    return "\n".join([printable(frame.attrs["metric"]), *lines])


def format_markdown(frame: pd.DataFrame) -> str:
    """Formats a table of runs, without the columns that are equal in all, or a summary below its metric, as Markdown."""
    columns = select_columns(frame)[0] if "run" in frame.columns else list(frame.columns)
    rows = [[header_of(name) for name in columns], ["---"] * len(columns)]
    rows += zip(*([format_cell(name, x) for x in frame[name]] for name in columns), strict=True)
    lines = [f"| {' | '.join(map(_escape, row))} |" for row in rows]
    return "\n".join([_escape(frame.attrs["metric"]), "", *lines] if "metric" in frame.attrs else lines)


def _escape(text: str) -> str:
    """Escapes text of a Markdown table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("`", "\\`")


def header_of(name: str) -> str:
    """Returns the header of a column."""
    return printable(_NAMES.get(name, name))


def format_cell(name: str, value: Any) -> str:
    """Formats a value of a column with its unit: statuses with a mark, durations, bytes, shares; "" for no value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and math.isnan(value)):
        return ""
    if name == "status":
        return f"{MARKS.get(value, '?')} {value}"
    if name == "commit" and isinstance(value, str):
        return f"{printable(value)[:8]}{'+' * value.endswith('+')}"
    if not is_number or math.isinf(value):
        return format_value(value)
    if name == "seconds":
        return format_seconds(value)
    if name == "peak_bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if name == "mfu":
        return f"{100 * value:.1f} %"
    if name == "flops":
        return f"{value:.3g}"
    if name == "parameters":
        return f"{value / 1e6:,.1f} M" if value >= 1e6 else f"{value:,.0f}"
    return format_value(int(value) if float(value).is_integer() and abs(value) < 2**53 else value)


def format_value(value: Any) -> str:
    """Formats an option or a metric: floats with four significant digits."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return printable(str(value))


def format_seconds(seconds: float) -> str:
    """Formats a duration with two units, such as "1h 02m"."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02}m"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats rows, the first of them a header, as lines with aligned columns; those of numbers to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    to_right = [all(cell[:1] in "-+.0123456789" or cell in ("inf", "nan") for cell in column[1:]) for column in columns]
    lines = []
    for row in rows:
        cells = []
        for cell, width, is_right in zip(row, widths, to_right, strict=True):
            space = " " * (width - _width(cell))
            cells.append(f"{space}{cell}" if is_right else f"{cell}{space}")
        lines.append(_GAP.join(cells).rstrip())
    return lines


def printable(text: str) -> str:
    """Replaces characters that would control a terminal or break a line, and lone surrogates, by "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _shorten(name: str, text: str) -> str:
    """Removes the middle of a long text."""
    limit = _LONGEST_RUN if name == "run" else _LONGEST
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit - limit // 2) :]}"


def _width(text: str) -> int:
    """Returns the columns that a text takes in a terminal: wide characters, such as Chinese, take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
