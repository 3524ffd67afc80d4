"""Ablates a small CLIP on pairs of colour and shape that do not occur in training, one change at a time.

    python -m benchmarks.composition

Trains `configs/clip/demo.py` for 600 updates, unchanged and with one change each, and prints zero-shot accuracy on `test`
and `novel`. Takes about half an hour on two cores.
"""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import train_jax
from benchmarks import load_config
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


def measure(name: str, changes: dict, context=contextlib.nullcontext) -> None:
    config = load_config("clip/demo")
    config.steps = UPDATES
    config.update_from_flattened_dict(changes)
    with tempfile.TemporaryDirectory() as folder, context():
        metrics = train_jax.run(config, Path(folder) / "run")[-1]
    print(f"{name:<40} test {100 * metrics['test/top1']:5.1f} %   novel {100 * metrics['novel/top1']:5.1f} %", flush=True)


def main() -> None:
    for name, changes in CHANGES.items():
        measure(name, changes)
    measure("only captions that name every attribute", {}, _patch_captions)


if __name__ == "__main__":
    main()
