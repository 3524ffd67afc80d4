"""Compares quantisers at the same bit rate with otherwise equal options.

    python -m benchmarks.quantizers

Trains `configs/vqgan/demo.py` for 2,000 updates with each quantiser at 12 bits per code (4,096 codes, 8 x 8 codes per image)
and prints reconstruction metrics on `test` and the usage of the codebook. Takes about 20 minutes on two cores.
"""

import tempfile
import time
from pathlib import Path

import train_jax
from benchmarks import load_config

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


def measure(quantizer: dict, codebook: dict) -> str:
    """Trains a VQGAN; returns the table cells with the last evaluation and the time."""
    config = load_config("vqgan/demo")
    config.steps = UPDATES
    config.model.quantizer, config.codebook = quantizer, codebook
    config.evals = {"test": {"type": "reconstruction", "shown": 0}}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        history = train_jax.run(config, Path(folder) / "run")
    minutes = (time.monotonic() - start) / 60
    metrics = {name: value for row in history for name, value in row.items()}
    return (
        f"{metrics['test/psnr']:.2f} dB | {100 * metrics['test/usage']:.0f} % | {metrics['test/perplexity']:,.0f} | "
        f"{metrics['steps_per_second']:.1f} | {minutes:.1f} min"
    )


def main() -> None:
    print("| quantiser | PSNR on `test` | codes used | perplexity | updates/s | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, options in QUANTIZERS.items():
        print(f"| {name} | {measure(*options)} |", flush=True)


if __name__ == "__main__":
    main()
