"""Metrics of a run: one JSON object per line, TensorBoard events, images, and a progress bar.

`metrics.jsonl` is the complete record, which `read` parses. Non-finite numbers are the strings "nan", "inf" and "-inf",
since JSON cannot represent them.
"""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.record_writer import register_writer_factory
from tqdm import tqdm

from train_jax import paths
from train_jax.data.errors import DataError
from train_jax.paths import AnyPath

_FILE, _IMAGES = "metrics.jsonl", "samples"
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_STORED_EVERY = 30.0  # seconds between uploads of a file
_PLAIN_LINE_EVERY = 30.0  # seconds between progress lines if standard error is not a terminal


class History(list):
    """Metrics of a run: a list of rows in the order of writing. `pandas.DataFrame(history)` accepts a History."""

    def to_dict(self) -> dict[str, list]:
        """Returns all columns by name, with None for missing values. All columns have the length of the history."""
        names = dict.fromkeys(name for row in self for name in row)
        return {name: [row.get(name) for row in self] for name in names}

    def last(self, name: str) -> float:
        """Returns the last value of a column. Raises KeyError, listing the columns, if there is none."""
        for row in reversed(self):
            if name in row:
                return row[name]
        raise KeyError(f"no {name!r} in this history; its columns are {', '.join(self.to_dict())}")

    def last_evaluations(self, *metrics: str) -> dict[str, float]:
        """Returns the last value of each metric of evaluators by name, `EVALUATOR/…/METRIC`, for some METRICs."""
        values = {}
        for row in self:
            values |= {name: x for name, x in row.items() if "/" in name and name.rpartition("/")[2] in metrics}
        return values


def read(workdir: str | os.PathLike, on_invalid: Callable[[DataError], Any] | None = None) -> History:
    """Reads the history of a run directory. Ignores an unfinished last line of a killed process.

    Args:
      on_invalid: function that is called with the error of each invalid line, which is left out; None: the first such error,
        a DataError, is raised.
    """
    return History(from_json(row) for _, row in _rows(paths.path(workdir) / _FILE, on_invalid))


def _rows(file: AnyPath, on_invalid: Callable[[DataError], Any] | None = None) -> list[tuple[str, dict]]:
    """Reads the complete lines of a metrics file as `(line, row)` pairs."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    rows = []
    for line_number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((line.decode(), row | {"step": int(row["step"])}))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            invalid = DataError(f"{file}, line {line_number} is no row of metrics ({error}): remove it")
            if on_invalid is None:
                raise invalid from error
            on_invalid(invalid)
    return rows


class Writer:
    """Writer of the metrics of one run.

    Args:
      workdir: run directory.
      total_steps: number of updates of the run, for the progress bar.
      active: False: all methods do nothing, as on all processes but the first.
      start_step: step from which the run resumes. Lines and images of later steps are deleted, since they will be written
        again.
      shows_progress: whether to print progress; the files are written in any case.
      mirrors: where metrics are written, too (`train_jax.mirrors`).
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int,
        active: bool = True,
        start_step: int = 0,
        shows_progress: bool = True,
        mirrors: Sequence = (),
    ):
        self._active, self._mirrors = active, mirrors
        if not active:
            return
        self._workdir = paths.path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        for file in (self._workdir / _IMAGES).glob("*.png"):
            if file.name[:8].isdigit() and int(file.name[:8]) > start_step:
                file.unlink()
        self._file = self._open(start_step)
        self._events = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=30)
        self._shows_progress = shows_progress
        is_hidden = not (shows_progress and sys.stderr.isatty())
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, disable=is_hidden)
        self._total, self._last_line = total_steps, time.monotonic()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes metrics to `metrics.jsonl`, TensorBoard, mirrors and the progress bar.

        On a local disk the line is flushed before this method returns; in object storage within half a minute.
        """
        if not self._active or not metrics:
            return
        row = {"step": step, "time": time.time()} | to_json(metrics)
        self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        for mirror in self._mirrors:
            mirror.log(step, {name: float(value) for name, value in metrics.items()})
        if self._shows_progress:
            self._progress(step, metrics)

    def has_results(self, step: int, names: list[str]) -> bool:
        """Returns whether the run directory holds metrics or images of any of these evaluators at this step."""
        if not self._active:
            return False
        rows = [row for _, row in _rows(self._workdir / _FILE) if row["step"] == step]
        image_names = [file.name for file in (self._workdir / _IMAGES).glob(f"{step:08d}-*.png")]
        return any(
            any(key.startswith(f"{name}/") for row in rows for key in row)
            or any(image_name.startswith(f"{step:08d}-{name}-") for image_name in image_names)
            for name in names
        )

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes uint8 [H, W, 3] images to `samples/<step>-<name>.png` and TensorBoard."""
        if not self._active:
            return
        for name, image in images.items():
            folder = self._workdir / _IMAGES
            folder.mkdir(exist_ok=True)
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            (folder / f"{step:08d}-{name.replace('/', '-')}.png").write_bytes(png.getvalue())
            self._events.add_image(name, image, step, dataformats="HWC")

    def write_histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Writes a histogram of values to TensorBoard."""
        if self._active:
            self._events.add_histogram(name, values, step)

    def close(self) -> None:
        """Closes the metrics file, TensorBoard, mirrors and the progress bar."""
        if self._active:
            for mirror in self._mirrors:
                mirror.close()
            self._file.close()
            self._events.close()
            self._bar.close()

    def _open(self, step: int):
        """Opens the metrics file for appending and removes the lines after `step`."""
        path = self._workdir / _FILE
        content = "".join(f"{line}\n" for line, row in _rows(path) if row["step"] <= step).encode()
        if not isinstance(path, Path):
            register_writer_factory(str(path).partition(":")[0], _StoredFiles())
            return _StoredFile(path, content)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
        return path.open("ab")

    def _progress(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Updates the progress bar, or prints a progress line if standard error is not a terminal."""
        headline = {
            short: metrics[name]
            for short, name in (("loss", "loss"), ("examples/s", "examples_per_second"), ("MFU", "mfu"))
            if name in metrics
        }
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in headline.items()})
            return
        now = time.monotonic()
        if "steps_per_second" in metrics and (now - self._last_line >= _PLAIN_LINE_EVERY or step == self._total):
            self._last_line = now
            remaining = (self._total - step) / metrics["steps_per_second"]
            values = "  ".join(f"{name} {value:.4g}" for name, value in headline.items())
            speed = f"{metrics['steps_per_second']:.3g} steps/s"
            print(
                f"step {step}/{self._total}  {values}  {speed}  {remaining / 60:.1f} min left", file=sys.stderr, flush=True
            )


class _StoredFile:
    """File in object storage. It cannot be appended to, so the whole file is uploaded periodically and at the end."""

    def __init__(self, path: AnyPath, content: bytes = b""):
        self._path, self._content = path, bytearray(content)
        self._next = 0.0

    def write(self, data: bytes) -> None:
        self._content += data

    def flush(self) -> None:
        if time.monotonic() >= self._next:
            self.close()

    def close(self) -> None:
        self._path.write_bytes(bytes(self._content))
        self._next = time.monotonic() + _STORED_EVERY


class _StoredFiles:
    """File factory that lets TensorBoard's writer open files in object storage."""

    def open(self, path: str) -> _StoredFile:
        return _StoredFile(paths.path(path))

    def directory_check(self, path: str) -> None:
        """Does nothing: object storage needs no folders."""


def to_json(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Converts metrics to values that JSON represents: finite numbers, and the strings "nan", "inf" and "-inf"."""
    return {name: _json_number(float(value)) for name, value in metrics.items()}


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")


def from_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the strings of `to_json` back to numbers."""
    return {name: _NON_FINITE.get(x, x) if isinstance(x, str) else x for name, x in row.items()}
