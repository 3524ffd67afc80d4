"""What a run tells: one JSON object a line, TensorBoard events, pictures, and a progress bar.

`metrics.jsonl` is the record; everything in it can be read back with `read`. Its numbers are finite or the words "nan",
"inf", "-inf", which JSON has no numbers for.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

_FILE = "metrics.jsonl"
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_PLAIN_LINE_EVERY = 30.0  # seconds between progress lines where standard error is no terminal


class History(list):
    """Rows of metrics by step, in the order they were written; `pandas.DataFrame(history)` reads it."""

    def to_dict(self) -> dict[str, list]:
        """Columns by name, as long as the history; None where a row lacks the column."""
        names = dict.fromkeys(name for row in self for name in row)
        return {name: [row.get(name) for row in self] for name in names}

    def last(self, name: str) -> float:
        """The newest value of a column. KeyError that lists the columns if there is none."""
        for row in reversed(self):
            if name in row:
                return row[name]
        raise KeyError(f"no {name!r} in this history; it holds {', '.join(self.to_dict())}")


def read(workdir: str | Path) -> History:
    """The history of a run directory; a line that a killed process left unfinished is passed over."""
    path = Path(workdir) / _FILE
    text = path.read_text("utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return History(
        {key: _WORDS.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows
    )


class Writer:
    """Writes the metrics of one run. On all processes but the first (`active=False`) it writes nothing.

    Args:
      workdir: run directory.
      total_steps: for the progress bar.
      start_step: where the run goes on. Lines of later steps are dropped first: they were written after the checkpoint
        that the run resumes from, and will be written again.
    """

    def __init__(self, workdir: str | Path, *, total_steps: int, active: bool = True, start_step: int = 0):
        self._active = active
        if not active:
            return
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._keep_until(start_step)
        self._file = (self._workdir / _FILE).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=30)
        self._bar = tqdm(
            total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self._total, self._told = total_steps, time.monotonic()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one line of numbers, on disk before this returns, and the same to TensorBoard and the progress bar."""
        if not self._active or not metrics:
            return
        row = {"step": step, "time": time.time()} | {name: _json_number(value) for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._progress(step, metrics)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Saves uint8 [H, W, 3] pictures as `samples/<step>-<name>.png` and in TensorBoard."""
        if not self._active:
            return
        for name, image in images.items():
            folder = self._workdir / "samples"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{step:08d}-{name.replace('/', '-')}.png")
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._events.close()
            self._bar.close()

    def _keep_until(self, step: int) -> None:
        path = self._workdir / _FILE
        if not path.exists():
            return
        lines = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        part = path.with_suffix(".part")
        part.write_text(kept, "utf-8")
        os.replace(part, path)

    def _progress(self, step: int, metrics: Mapping[str, Any]) -> None:
        shown = {
            short: metrics[name]
            for short, name in (("loss", "loss"), ("examples/s", "examples_per_second"), ("MFU", "mfu"))
            if name in metrics
        }
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})
            return
        now = time.monotonic()
        if "steps_per_second" in metrics and (now - self._told >= _PLAIN_LINE_EVERY or step == self._total):
            self._told = now
            left = (self._total - step) / metrics["steps_per_second"]
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            speed = f"{metrics['steps_per_second']:.3g} steps/s"
            print(
                f"step {step}/{self._total}  {numbers}  {speed}  {left / 60:.1f} min left", file=sys.stderr, flush=True
            )


def _json_number(value: Any) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
