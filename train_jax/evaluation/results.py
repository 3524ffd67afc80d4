"""Results of evaluations without training: JSON lines, one per model, evaluator and data, that a repeated command skips.

A line holds `model` (as named by the user), `model_id` (a fingerprint of the weights), `family`, `step` (null: not known),
`evaluator` (its name), `options` (with its `type`, and the `dtype` of the computation), `source`, `split`, `data_id` (a
fingerprint of the data), `metrics`, `time` (seconds since 1970), `seconds` (duration) and `versions`.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from train_jax import metrics, paths
from train_jax.data.errors import DataError
from train_jax.data.sources import Source, compute_fingerprint
from train_jax.paths import AnyPath

FILE = "evaluations.jsonl"  # in a run directory
_KEY = ("model_id", "evaluator", "options", "source", "split", "data_id")  # fields of which equal values are one result
_SCHEDULE = ("every", "source", "split", "batch_size")  # options that are fields of their own, or do not change a result


def read_evaluations(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the results of a file, or of the file of a run directory; an empty list if there is none.

    Of several lines of one model, evaluator and data the last counts. Ignores an unfinished last line of a killed process.
    Raises DataError for an invalid line.
    """
    file = paths.path(path)
    file = file / FILE if file.is_dir() else file
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else (), 1):
        try:
            row = json.loads(line)
            rows[row["model"], _make_key(row)] = row | {"metrics": metrics.from_json(row["metrics"])}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{file}, line {number} is no result of an evaluation ({error!r}): remove it") from error
    return list(rows.values())


def result_options(options: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the options of an evaluator that affect its results, as JSON values, with the dtype of the model."""
    relevant = {name: value for name, value in options.items() if name not in _SCHEDULE}
    return json.loads(json.dumps(relevant | {"dtype": dtype}))


def compute_data_id(open_split: Callable[[str], Source], options: Mapping[str, Any] | ConfigDict) -> str:
    """Computes the fingerprint of the data of an evaluator: of its split, and of the split that it learns from, if any."""
    splits = [options[name] for name in ("split", "train_split") if name in options]
    fingerprints = [compute_fingerprint(open_split(split)) for split in splits]
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()


class EvaluationFile:
    """File of results. Raises DataError for an invalid line.

    Args:
      again: evaluate anew what the file holds.
    """

    def __init__(self, file: AnyPath, *, again: bool = False):
        self._file, self._again = file, again
        self._rows = {_make_key(row): row for row in read_evaluations(file)}

    def evaluate(self, row: Mapping[str, Any], evaluator: Callable[[], Mapping[str, Any]]) -> tuple[dict[str, Any], bool]:
        """Returns the row of the file with the same model, evaluator and data, or evaluates and appends it.

        Args:
          row: all fields but the results.
          evaluator: function that returns the metrics.

        Returns `(row with results, whether it is new)`. On several hosts, process 0 decides and writes.
        """
        import jax  # lazy imports: reading a file needs no JAX

        from train_jax import agreement

        key = _make_key(row)
        if found := agreement.broadcast_from_first(None if self._again else self._rows.get(key)):
            return found | {"model": row["model"], "step": row["step"]}, False  # as the user names it now
        start = time.monotonic()
        results = metrics.to_json(evaluator())
        row = {**row, "metrics": results, "time": time.time(), "seconds": time.monotonic() - start, "versions": _versions()}
        if jax.process_index() == 0:
            self._append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._rows[key] = row | {"metrics": metrics.from_json(results)}
        return self._rows[key], True

    def _append(self, line: bytes) -> None:
        """Appends a line and writes it to disk. Removes an unfinished last line."""
        if not isinstance(self._file, Path):  # object storage does not append
            content = self._file.read_bytes() if self._file.exists() else b""
            self._file.write_bytes(content[: content.rfind(b"\n") + 1] + line)
            return
        with self._file.open("a+b") as stream:
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())


def _make_key(row: Mapping[str, Any]) -> str:
    return json.dumps([row[name] for name in _KEY], sort_keys=True)


def _versions() -> dict[str, str]:
    import jax

    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    return {"python": platform.python_version(), **packages, "device": jax.devices()[0].device_kind}
