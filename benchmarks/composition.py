"""Ablates a small CLIP on pairs of colour and shape that do not occur in training, one change at a time.

    python -m benchmarks.composition

Trains `configs/clip/demo.py` for 600 updates, unchanged and with one change each, and measures zero-shot accuracy on `test`
and `novel`. Takes about half an hour on two cores.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import train_jax
from benchmarks import load_config
from benchmarks.command import main
from benchmarks.results import Row
from train_jax.data import sources

UPDATES = 600
CHANGES = {
    "as it is": {},
    "plain patches instead of the stem": {"model.image.stem": "patch"},
    "plain patches of 4 pixels, lr 1e-3": {"model.image.stem": "patch", "model.image.patch": 4, "optim.lr": 1e-3},
    "class token instead of mean": {"model.image.pool": "cls"},
}


class _FirstCaptionOnly:
    """Records with only the first caption, which names every attribute."""

    def __init__(self, records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        return record | {"captions": record["captions"][:1]}


def _patch_captions():
    def open_source(name, split, **options):
        source = original(name, split, **options)
        return dataclasses.replace(source, records=_FirstCaptionOnly(source.records)) if split == "train" else source

    original = sources.open_source
    return mock.patch.object(sources, "open_source", open_source)


def measure(name: str, changes: dict, updates: int, context=contextlib.nullcontext) -> Iterator[Row]:
    config = load_config("clip/demo")
    config.steps = updates
    config.update_from_flattened_dict(changes)
    with tempfile.TemporaryDirectory() as folder, context():
        metrics = train_jax.run(config, Path(folder) / "run")[-1]
    for split in ("test", "novel"):
        yield Row(f"accuracy on {split}", 100 * metrics[f"{split}/top1"], "%", {"model": name, "updates": updates})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=int, default=UPDATES)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for name, changes in CHANGES.items():
        yield from measure(name, changes, arguments.updates)
    yield from measure("only captions that name every attribute", {}, arguments.updates, _patch_captions)


if __name__ == "__main__":
    main(rows, add_arguments)
