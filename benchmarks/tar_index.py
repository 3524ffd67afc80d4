"""Measures the index of tars: bytes per sample, and time and memory of opening, for a synthetic set of millions of samples.

    python -m benchmarks.tar_index [--tars 2000] [--samples 10000] [--folder FOLDER]

The set consists of empty tars with made-up indexes, as a scan would write them. The rate of scanning is measured on one real
tar.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.command import main, positive
from benchmarks.results import Row
from train_jax import paths
from train_jax.data import tar_index

# Program of a process that opens the set and reads samples: seconds and MiB of opening, microseconds of a sample.
_OPEN = """
import resource, sys, time
import numpy as np
from train_jax.data import sources
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before, begun = rss(), time.perf_counter()
source = sources.open_source(f"webdataset:{sys.argv[1]}/*.tar", sys.argv[2])
seconds, memory = time.perf_counter() - begun, rss() - before
index = source.records._function.__self__._index
positions = [int(i) for i in np.random.default_rng(0).integers(0, len(source), 20_000)]
begun = time.perf_counter()
for position in positions:
    index[source.records._rows[position]]
print(len(source), seconds, memory, (time.perf_counter() - begun) / len(positions) * 1e6)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tars", type=positive, default=2_000)
    parser.add_argument("--samples", type=positive, default=10_000, help="samples per tar")
    parser.add_argument("--folder", help="where to write; about 90 bytes a sample")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    settings = {"tars": arguments.tars, "samples": arguments.tars * arguments.samples}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        yield Row("scan in one process", _measure_scan(root / "real.tar", arguments.samples), "samples/s", settings)
        for tar in range(arguments.tars):
            _write_index(root / "set" / f"{tar:05d}.tar", tar, arguments.samples)
        for split in ("train, first", "train", "train[1%:]"):  # the first joins the indexes of the tars
            command = [sys.executable, "-c", _OPEN, str(root / "set"), split.removesuffix(", first")]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds, memory, microseconds = map(float, output[1:])
            yield Row("open", seconds, "s", settings | {"split": split})
            yield Row("memory of the process", memory, "MiB", settings | {"split": split})
            yield Row("random access", microseconds, "us a sample", settings | {"split": split})
        (joined,) = (paths.cache() / "tars").glob("*-*")
        for kind, folder, pattern in (("joined index", joined, "*"), ("index beside the tars", root / "set", "*.npy")):
            size = sum(file.stat().st_size for file in folder.glob(pattern))
            yield Row(kind, size / settings["samples"], "bytes a sample", settings)


def _measure_scan(file: Path, count: int) -> float:
    """Returns the number of samples (an image and a caption) that one process scans per second."""
    with tarfile.open(file, "w") as tar:
        for sample in range(count):
            for suffix, size in (("jpg", 4000), ("txt", 60)):
                info = tarfile.TarInfo(f"{sample:09d}.{suffix}")
                info.size = size
                tar.addfile(info, io.BytesIO(bytes(size)))
    begun = time.perf_counter()
    tar_index.scan_missing([file])
    seconds = time.perf_counter() - begun
    file.unlink()
    return count / seconds


def _write_index(tar: Path, number: int, count: int) -> None:
    """Writes an empty tar with the index of `count` images of 20 to 80 KiB with captions."""
    tar.parent.mkdir(exist_ok=True)
    tar.touch()
    sizes = np.random.default_rng(number).integers(20_000, 80_000, count)
    samples = np.zeros(count, tar_index.SAMPLE)
    samples["image_block"] = 1 + np.concatenate([[0], np.cumsum(sizes // 512 + 4)[:-1]])
    samples["image_size"], samples["caption_size"] = sizes, 60
    samples["caption_block"] = samples["image_block"] + sizes // 512 + 2
    keys = "".join(f"{number * count + sample:09d}" for sample in range(count)).encode()
    samples["key_end"] = 9 * np.arange(1, count + 1)
    tar_index.write_columns(tar, tar_index.read_stamp(tar), samples, np.frombuffer(keys, np.uint8))


if __name__ == "__main__":
    main(rows, add_arguments)
