"""Run directories written by hand, for tests of what reads them."""

import json
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_run(
    folder: Path,
    metrics: dict[str, list[float | str | None]],
    config: dict | None = None,
    *,
    steps: int | None = None,
    every: int = 10,
    checkpoint: int | None = None,
    **start,
) -> Path:
    """Writes a run of batches of 4 that logged a row every 10 updates and 20 seconds, finished unless `steps` are more.

    Args:
      metrics: name -> the values of its rows; None: no value in this row.
      config: options besides `steps` and the batch size.
      checkpoint: step of its checkpoint; None: that of the last row.
      start: other entries of `environment.json`.
    """
    count = max(map(len, metrics.values()), default=0)
    last = every * count
    rows = [{"step": every * (i + 1), "time": 1000.0 + 20 * (i + 1)} for i in range(count)]
    for name, values in metrics.items():
        for row, value in zip(rows, values, strict=False):
            row |= {} if value is None else {name: value}
    write_config(folder, {"steps": last if steps is None else steps, "data": {"batch_size": 4}} | (config or {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    add_checkpoint(folder, last if checkpoint is None else checkpoint)
    start = {"time": 1000.0, "step": 0, "flops_per_example": 1e6, "peak_bytes": 3 * 2**20, "device": "cpu"} | start
    code = {"code": {"commit": COMMIT, "dirty": False}, "versions": {"python": "3.11.0", "jax": "0.10.0"}}
    (folder / "environment.json").write_text(json.dumps({"starts": [code | {"parameters": {"clip": 100}} | start]}))
    return folder


def write_config(folder: Path, config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def add_checkpoint(folder: Path, step: int) -> None:
    """Adds what a complete checkpoint looks like from outside."""
    state = folder / "checkpoints" / str(step) / "state"
    state.mkdir(parents=True)
    (state / "array").write_bytes(b"0")


def seeds_and_rates(folder: Path) -> dict[tuple[float, int], float]:
    """Writes runs of two learning rates and three seeds. Returns the last value of "test/top1" of each."""
    values = {(0.1, 0): 0.50, (0.1, 1): 0.54, (0.1, 2): 0.61, (0.3, 0): 0.58, (0.3, 1): 0.60, (0.3, 2): 0.63}
    for (lr, seed), value in values.items():
        metrics = {"loss": [2.0, 1.0, 1 - value], "test/top1": [None, value + 0.1, value]}
        write_run(folder / f"lr{lr}-seed{seed}", metrics, config_of(lr, seed))
    return values


def config_of(lr: float, seed: int) -> dict:
    return {"seed": seed, "optim": {"lr": lr, "betas": [0.9, 0.98]}, "evals": {"test": {"every": 20}}}


def write_evaluations(file: Path, *results: tuple[str, str, dict[str, float]]) -> Path:
    """Writes results `(model, data, metrics)` of `train-jax evaluate`, by an evaluator "test"."""
    rows = [
        {"model": model, "model_id": model, "family": "clip", "step": None, "evaluator": "test", "options": {},
         "source": data, "split": "test", "data_id": data, "metrics": metrics, "time": 5000.0, "seconds": 1.0,
         "versions": {}}
        for model, data, metrics in results
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
