"""Ablates a small CLIP on pairs of colour and shape that do not occur in training, one change at a time.

    python -m benchmarks.composition

Trains `configs/clip/shapes.py` for 600 updates, unchanged and with one change each, and measures zero-shot accuracy on
`test` and `novel`. Takes about half an hour on two cores.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import train_jax
from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.results import Row

UPDATES = 600
CHANGES = {
    "as it is": {},
    "plain patches instead of the stem": {"model.image.stem": "patch"},
    "plain patches of 4 pixels, lr 1e-3": {"model.image.stem": "patch", "model.image.patch": 4, "optim.lr": 1e-3},
    "class token instead of mean": {"model.image.pool": "cls"},
    "only captions that name every attribute": {"data.leading_prob": 1.0},
}


def measure(name: str, changes: dict, updates: int) -> Iterator[Row]:
    config = load_config("clip/shapes")
    config.steps = updates
    config.optim.warmup_steps = min(config.optim.warmup_steps, updates // 2)
    config.update_from_flattened_dict(changes)
    with tempfile.TemporaryDirectory() as folder:
        metrics = train_jax.run(config, Path(folder) / "run")[-1]
    for split in ("test", "novel"):
        yield Row(f"accuracy on {split}", 100 * metrics[f"{split}/top1"], "%", {"model": name, "updates": updates})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=positive, default=UPDATES)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for name, changes in CHANGES.items():
        yield from measure(name, changes, arguments.updates)


if __name__ == "__main__":
    main(rows, add_arguments)
