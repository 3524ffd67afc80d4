"""Compares quantisers at the same bit rate with otherwise equal options.

    python -m benchmarks.quantizers

Trains `configs/vqgan/demo.py` for 2,000 updates with each quantiser at 12 bits per code (4,096 codes, 8 x 8 codes per image)
and measures reconstructions of `test` and the usage of the codebook. Takes about 20 minutes on two cores.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import train_jax
from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.results import Row

UPDATES = 2000
KMEANS_AND_REVIVAL = {"start": "kmeans", "revive": 100}
QUANTIZERS = {  # name -> options of the quantiser and of the codebook
    "nearest, 16 numbers a code": ({"type": "nearest", "dim": 16, "size": 4096}, KMEANS_AND_REVIVAL),
    "nearest, no k-means, no revival": ({"type": "nearest", "dim": 16, "size": 4096}, {}),
    "nearest, 8 numbers, unit norm": ({"type": "nearest", "dim": 8, "size": 4096, "unit": True}, KMEANS_AND_REVIVAL),
    "EMA, 16 numbers a code": ({"type": "ema", "dim": 16, "size": 4096}, KMEANS_AND_REVIVAL),
    "Gumbel-softmax": ({"type": "gumbel", "dim": 16, "size": 4096}, {}),
    "FSQ, 8 x 8 x 8 x 8": ({"type": "fsq", "levels": (8, 8, 8, 8)}, {}),
    "LFQ, 12 bits": ({"type": "lfq", "bits": 12}, {}),
}


def measure(name: str, quantizer: dict, codebook: dict, updates: int) -> Iterator[Row]:
    """Trains a VQGAN and yields its last evaluation and its time."""
    config = load_config("vqgan/demo")
    config.steps = updates
    config.optim.warmup_steps = min(config.optim.warmup_steps, updates // 2)
    config.model.quantizer, config.codebook = quantizer, codebook
    config.evals = {"test": {"type": "reconstruction", "shown": 0}}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        history = train_jax.run(config, Path(folder) / "run")
    minutes = (time.monotonic() - start) / 60
    metrics = {name: value for row in history for name, value in row.items()}
    settings = {"quantiser": name, "updates": updates}
    yield Row("PSNR on test", metrics["test/psnr"], "dB", settings)
    yield Row("codes used", 100 * metrics["test/usage"], "%", settings)
    yield Row("perplexity", metrics["test/perplexity"], "codes", settings)
    yield Row("updates", metrics["steps_per_second"], "updates/s", settings)
    yield Row("time", minutes, "min", settings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=positive, default=UPDATES)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for name, options in QUANTIZERS.items():
        yield from measure(name, *options, arguments.updates)


if __name__ == "__main__":
    main(rows, add_arguments)
