"""Measured numbers, and the file of each device that keeps them: `benchmarks/results/DEVICE.json`."""

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np

from train_jax import paths
from train_jax.data.errors import DataError

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "results"
OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
      name: what was measured, such as "training pairs".
      value: the median over rounds; None if it was not measured, for which `note` gives the reason.
      unit: unit of the value.
      settings: what else the value depends on, such as `{"model": "ViT-B/32", "batch": 16}`: names to numbers or strings.
      low: the least value of a round; None for a value that does not vary, such as a size.
      high: the largest value of a round.
      rounds: number of rounds.
      by: the implementation: "ours", or a peer with its version, such as "PyTorch 2.13.0".
      ratio: in a peer's row, how many times as fast ours is; None: not compared.
      note: a remark on this value.
    """

    name: str
    value: float | None
    unit: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    by: str = OURS
    ratio: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """Conditions of a measurement.

    Attributes:
      date: time in UTC, such as "2026-11-26 22:40".
      commit: git's commit of the code; "… with changes" if files differ from it; "unknown" without git.
      versions: versions of Python and of libraries, and of the platform of an accelerator.
    """

    date: str
    commit: str
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Record:
    """A row of a benchmark as it is stored."""

    benchmark: str
    row: Row
    run: Run

    @property
    def key(self) -> str:
        """Identity of what was measured: a record replaces an older one with the same key."""
        return json.dumps([self.benchmark, self.row.name, self.row.by, self.row.settings], sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Device:
    """Device of a measurement.

    Attributes:
      name: kind and number of the accelerators, or the model and number of cores of the CPU.
      host: model and number of cores of the CPU.
    """

    name: str
    host: str

    @property
    def slug(self) -> str:
        """Name for files, such as "nvidia-h100-80gb-hbm3"."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def _read_cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def describe(commit: str = "") -> tuple[Device, Run]:
    """Returns the devices that JAX uses in this process, which initialises them, and the conditions of a measurement now.

    Args:
      commit: commit of the code; "": ask git.
    """
    devices, cores = jax.devices(), len(os.sched_getaffinity(0))
    name = host = f"{_read_cpu_model()}, {cores} core{'s' * (cores > 1)}"
    versions = {"Python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    versions["flax"] = flax.__version__
    if devices[0].platform != "cpu":
        name = devices[0].device_kind + f" x {len(devices)}" * (len(devices) > 1)
        versions["platform"] = " ".join(devices[0].client.platform_version.split())[:120]
    now = datetime.datetime.now(datetime.UTC)
    return Device(name, host), Run(f"{now:%Y-%m-%d %H:%M}", commit or _read_commit(), versions)


def _read_commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs")
        return git("rev-parse", "--short=12", "HEAD") + " with changes" * bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def store(folder: Path, device: Device, record: Record) -> None:
    """Adds a record to the file of a device, in place of an older one of the same key. The file is always complete."""
    file = folder / f"{device.slug}.json"
    records = {old.key: old for old in (read(file)[1] if file.is_file() else [])}
    records[record.key] = record
    lines = ",\n".join(_to_json(x) for x in records.values())
    text = f'{{"device": {json.dumps(dataclasses.asdict(device))},\n"records": [\n{lines}\n]}}\n'
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_atomically(file, lambda stream: stream.write(text.encode()))


def _to_json(record: Record) -> str:
    """Formats a record in one line, without what is None or empty, and numbers with six digits."""

    def rounded(x):
        return float(f"{float(x):.6g}") if isinstance(x, float | np.floating) and np.isfinite(x) else x

    fields = dataclasses.asdict(record)
    row = {name: rounded(x) for name, x in fields["row"].items() if name == "value" or x not in (None, "", {})}
    return json.dumps(fields | {"row": row}, ensure_ascii=False)


def read(file: Path) -> tuple[Device, list[Record]]:
    """Reads the file of a device. Raises DataError for any other file."""
    try:
        content = json.loads(file.read_text())
        records = [Record(x["benchmark"], Row(**x["row"]), Run(**x["run"])) for x in content["records"]]
        return Device(**content["device"]), records
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a file of benchmarks.results ({type(error).__name__}: {error})") from error
