"""Report of runs as one HTML file: a sortable table, curves, and the latest sample images of each run."""

import html
import io
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from train_jax import page
from train_jax.paths import AnyPath
from train_jax.runs import plots, tables, text
from train_jax.runs.read import Run

_CURVES = 6  # plots of a report
_SAMPLES = 6  # images of a run
_SIDE = 320  # pixels, longest side of an image
_WIDTH, _HEIGHT = 90, 22  # pixels of the small plot of a run

_STYLE = """
body { max-width: none }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--card) }
th { cursor: pointer; user-select: none; border-bottom: 2px solid var(--grey) }
th:first-child, td:first-child { text-align: left }
td svg { display: block } svg polyline { fill: none; stroke: currentColor; stroke-width: 1.2 }
.finished { color: var(--good) } .failed, .damaged { color: var(--bad) } .unfinished, .empty, .note { color: var(--grey) }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } .plots img { aspect-ratio: auto; width: auto; max-width: 100% }
.samples { display: flex; flex-wrap: wrap; gap: .9rem } .samples img { aspect-ratio: auto; width: auto }
.error { overflow-wrap: anywhere }
""".strip()

# A click on a header sorts the rows by that column: numbers before texts, empty cells last; another click reverses them.
_SCRIPT = """
document.querySelectorAll("table.sortable th").forEach((header, column) => header.addEventListener("click", () => {
  const body = header.closest("table").tBodies[0], sign = header.dataset.sign = -(header.dataset.sign || -1);
  const key = row => row.cells[column].dataset.key;
  const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
    : sign * (isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) || a.localeCompare(b) : a - b);
  [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
}));
""".strip()


def make_report(
    runs: Sequence[Run],
    frame: pd.DataFrame,
    metrics: Sequence[str],
    summary: pd.DataFrame | None = None,
    by: Sequence[str] = (),
) -> str:
    """Makes an HTML page without any outside address; all names and errors are escaped.

    Args:
      runs: the runs.
      frame: their table (see `train_jax.runs.table`), in the order of the page.
      metrics: metrics to plot if they are curves; the first curve is also plotted small in the row of each run.
      summary: a summary to show, or None.
      by: options that give runs of the curves their colours.
    """
    curves = [name for name in metrics if any(len(tables.series(run, name)[0]) > 1 for run in runs)]
    parts = [page.heading("Runs", 1), _make_table(runs, frame, curves)]
    if summary is not None:
        parts += [page.heading(f"By {', '.join(by)}", 2), page.block(text.format_summary(summary))]
    images = [_plot(runs, metric, by) for metric in curves[:_CURVES]]
    if images:
        parts += [page.heading("Curves", 2), f'<div class="plots">{"".join(images)}</div>']
    by_name = {run.name: run for run in runs}
    sections = [_make_samples(by_name[name]) for name in frame["run"]]
    if any(sections):
        parts += [page.heading("Latest samples", 2), *sections]
    return page.document("Runs", "\n".join([*parts, f"<script>\n{_SCRIPT}\n</script>"]), _STYLE)


def _make_table(runs: Sequence[Run], frame: pd.DataFrame, curves: Sequence[str]) -> str:
    columns, constant = text.select_columns(frame)
    by_name = {run.name: run for run in runs}
    headers = [text.header_of(name) for name in columns] + [f"{text.printable(name)} (curve)" for name in curves[:1]]
    rows = []
    for row in frame.to_dict("records"):
        cells = [_make_cell(name, row[name]) for name in columns]
        if curves:
            cells.append(f'<td data-key="">{_sparkline(by_name[row["run"]], curves[0])}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    parts = [
        '<div class="wide"><table class="sortable">',
        f"<thead><tr>{head}</tr></thead>\n<tbody>",
        *rows,
        "</tbody></table></div>",
    ]
    if constant:
        line = ", ".join(f"{text.header_of(name)} {value}" for name, value in constant.items())
        parts.append(f'<p class="note">In all runs: {html.escape(line)}</p>')
    for row in frame.to_dict("records"):
        if isinstance(row["error"], str):
            line = html.escape(f"{text.MARKS[row['status']]} {text.printable(row['run'])}: {text.printable(row['error'])}")
            parts.append(f'<p class="error {row["status"]}">{line}</p>')
    return "\n".join(parts)


def _make_cell(name: str, value: object) -> str:
    """Formats a cell with the key that the table is sorted by."""
    shown = text.format_cell(name, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    key = "" if not shown else repr(float(value)) if is_number and math.isfinite(value) else text.printable(str(value))
    style = f' class="{value}"' if name == "status" else ""
    return f'<td{style} data-key="{html.escape(key)}">{html.escape(shown)}</td>'


def _sparkline(run: Run, metric: str) -> str:
    """Formats a curve as a small SVG; empty for less than two finite values."""
    steps, values, _ = tables.series(run, metric)
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite].astype(np.float64), values[is_finite]
    if len(values) < 2:
        return ""
    shown = np.unique(np.linspace(0, len(values) - 1, _WIDTH).astype(int))
    x, y = ((a - a.min()) / (np.ptp(a) or 1) for a in (steps, values))
    points = " ".join(f"{1 + x[i] * (_WIDTH - 2):.1f},{_HEIGHT - 1 - y[i] * (_HEIGHT - 2):.1f}" for i in shown)
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}"><polyline points="{points}"/></svg>'


def _plot(runs: Sequence[Run], metric: str, by: Sequence[str]) -> str:
    stream = io.BytesIO()
    plots.plot_curves(runs, metric, by=by).savefig(stream, format="png")
    with Image.open(stream) as image:
        return f'<img src="{page.data_uri(image, "PNG")}" alt="{html.escape(text.printable(metric))}">'


def _make_samples(run: Run) -> str:
    """Formats the newest image of each name in `samples/<step>-<name>.png`; "" if there is none."""
    latest: dict[str, AnyPath] = {}
    try:
        files = sorted((run.path / "samples").glob("*.png"))
    except OSError:
        files = []
    for file in files:  # sorted by step: later files replace earlier ones
        step, _, name = file.stem.partition("-")
        if step.isdecimal() and name:
            latest[name] = file
    if not latest:
        return ""
    figures = [_make_figure(name, file) for name, file in list(latest.items())[:_SAMPLES]]
    return f'{page.heading(run.name, 3)}\n<div class="samples">{"".join(figures)}</div>'


def _make_figure(name: str, file: AnyPath) -> str:
    step = int(file.stem.partition("-")[0])
    caption = f"<figcaption>{html.escape(text.printable(name))}<span>step {step:,}</span></figcaption>"
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            if max(image.size) > _SIDE:
                image = image.convert("RGB")
                image.thumbnail((_SIDE, _SIDE))
            source = page.data_uri(image.convert("RGB"), "JPEG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return f'<figure><p class="damaged">{html.escape(text.printable(file.name))} cannot be read</p>{caption}</figure>'
    return f'<figure><img src="{source}" alt="">{caption}</figure>'
