"""Measures the input pipeline: training streams, reading and decoding by type of source, and decoding at smaller scales.

    python -m benchmarks.data [--sizes 400x300 512x384] [--streams 0x1 0x2 2x1 2x2] [--batch_size 1024]
    python -m benchmarks.data --sources
    python -m benchmarks.data --scales [--sizes 400x300 512x384]

`--sources` reads 2,000 JPEGs from a folder, a tar file and a TFDS data set in one thread. `--scales` makes training images
of 224 pixels from twelve JPEGs of each size, whole and from random crops of 50 to 100 % of the area, with and without
decoding at smaller scales, and measures how much the photographs of scikit-learn differ between the two. Otherwise, streams
of image-text pairs are measured: JPEGs of the given sizes in tars, decoded, resized and cropped to 224 pixels, with encoded
captions. `2x4` are two workers of four threads each; `0x4` are four threads of the process. A stream runs in a process of
its own. Pairs per second of CPU time, of all processes, hardly depend on what else the machine does. The pictures have
coarse shapes and noise, so that their files are as large as those of photographs.
"""

import argparse
import functools
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.command import main, positive
from benchmarks.results import Row
from benchmarks.timing import rate_row, size_row
from clip_jax.example import PairExample
from train_jax.data.images import Augment, Preprocess, decode_region, sample_crop
from train_jax.data.sources import open_source
from train_jax.data.stream import TrainStream
from train_jax.data.text import Tokenizer
from train_jax.errors import UserError

COUNT, SIDE = 2_000, 224
_CAPTION = "a photograph of a {} in front of an old house with a red roof"
_ANIMALS = ("cat", "dog", "horse", "cow", "sheep", "goat", "donkey", "goose")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sources", action="store_true", help="measure the types of sources")
    parser.add_argument("--scales", action="store_true", help="measure decoding at smaller scales")
    parser.add_argument("--sizes", nargs="+", type=pair, default=["400x300", "512x384"], help="sizes of the JPEGs")
    parser.add_argument("--streams", nargs="+", type=pair, default=["0x1", "0x2", "2x1", "2x2"], help="workers x threads")
    parser.add_argument("--batch_size", type=positive, default=1024)
    parser.add_argument("--seconds", type=float, default=8, help="duration of the measurement of a stream")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a stream, measured by this process


def pair(text: str) -> str:
    """Checks an argument of two numbers, such as "400x300"."""
    if not re.fullmatch(r"\d+x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; it must be two numbers, such as 400x300 or 2x4")
    return text


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        if arguments.one:
            print(json.dumps(_measure_stream(*arguments.one, arguments.batch_size, arguments.seconds)))
        elif arguments.sources:
            yield from compare_sources(Path(folder))
        elif arguments.scales:
            yield from compare_scales(arguments.sizes)
            yield from compare_photographs()
        else:
            yield from compare_streams(Path(folder), arguments)


def compare_sources(root: Path) -> Iterator[Row]:
    """Measures reading from each type of source in one thread, without and with decoding and cropping."""
    files = [_make_jpeg(SIDE, SIDE, index) for index in range(COUNT)]
    sources = {
        "folder": _write_folder(root / "folder", files),
        "webdataset": open_source(f"webdataset:{_write_tar(root / 'data.tar', files)}", "train"),
        "tfds": _write_tfds(root / "tfds", files),
    }
    preprocess = Preprocess(SIDE)
    for name, source in sources.items():
        settings = {"source": name, "images": COUNT, "pixels": SIDE, "KiB each": round(sum(map(len, files)) / COUNT / 1024)}
        yield Row("read", _measure_rate(source.__getitem__), "images/s", settings)
        ready = _measure_rate(lambda index, s=source: preprocess(s[index]["image"]))
        yield Row("read, decode, crop", ready, "images/s", settings)


def compare_streams(root: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measures training streams, each in a process of its own."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    for size in arguments.sizes:
        files = make_jpegs(size)
        tar = _write_tar(root / f"{size}.tar", files)
        kib = round(sum(map(len, files)) / len(files) / 1024)
        for stream in arguments.streams:
            measured = measure_stream_in_subprocess(tar, stream, arguments.batch_size, arguments.seconds)
            settings = {"JPEGs": f"{size}, {kib} KiB", "workers x threads": stream, "batch": arguments.batch_size}
            yield Row("time to the first batch", measured["first"], "s", settings)
            yield Row("pairs", measured["rate"], "pairs/s", settings)
            yield Row("pairs by CPU time", measured["cpu_rate"], "pairs/s of a core", settings)
            yield size_row("memory", measured["memory"], settings)
            yield size_row("shared memory", measured["shared_memory"], settings)


def make_jpegs(size: str) -> list[bytes]:
    """Makes 500 JPEGs of WIDTHxHEIGHT pixels."""
    width, height = map(int, size.split("x"))
    return [_make_jpeg(width, height, index) for index in range(COUNT // 4)]


def measure_stream_in_subprocess(tar: Path, stream: str, batch_size: int, seconds: float) -> dict[str, float]:
    """Measures a training stream of the pairs in a tar, for example "2x4": two workers of four threads each."""
    command = [sys.executable, "-m", "benchmarks.data", "--one", str(tar), stream]
    command += ["--batch_size", str(batch_size), "--seconds", str(seconds)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)  # its errors are shown
    if done.returncode:
        raise UserError(f"the stream {stream} of {tar.name} ended with code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare_scales(sizes: list[str], rounds: int = 3) -> Iterator[Row]:
    """Measures CPU time of making training images with and without decoding at smaller scales."""
    for size in sizes:
        width, height = map(int, size.split("x"))
        files = [_make_jpeg(width, height, index) for index in range(12)]
        makes = {
            f"{region}: {decode}": functools.partial(_make_training_image, area=area, may_shrink=may_shrink)
            for region, area in (("whole", None), ("crop", (0.5, 1.0)))
            for decode, may_shrink in (("full decode", False), ("smallest scale", True))
        }
        seconds = [{name: _measure_cpu_seconds(make, files) for name, make in makes.items()} for _ in range(rounds)]
        for name in makes:
            times = [turn[name] for turn in seconds]
            yield rate_row(name, times, len(files), "images/s of a core", {"JPEGs": size, "pixels": SIDE})


def _measure_cpu_seconds(make: Callable, files: list[bytes]) -> float:
    rng = np.random.default_rng(0)  # the same crops for each way of decoding
    begun = time.process_time()
    for data in files:
        make(data, rng)
    return time.process_time() - begun


def _make_training_image(data: bytes, rng, *, area: tuple | None, may_shrink: bool, side: int = SIDE) -> np.ndarray:
    """Makes an image as `Augment` does, whole or from a random crop of a share of its area."""
    preprocess = Preprocess(side)

    def choose_region(width: int, height: int):
        if area is None:
            return (0, 0, width, height), preprocess.target_size(width, height)
        return sample_crop(width, height, rng, scale=area), (side, side)

    decoded, region, size = decode_region(data, choose_region, may_shrink=may_shrink)
    return preprocess.resize_and_crop(decoded, size, region)


def compare_photographs() -> Iterator[Row]:
    """Measures how much photographs at the smallest scale differ from their full decode."""
    for name in ("china.jpg", "flower.jpg"):
        buffer = io.BytesIO()
        Image.fromarray(load_sample_image(name)).save(buffer, "JPEG", quality=90)
        for side in (64, 100, 150, 200):
            full, small = (
                _make_training_image(buffer.getvalue(), None, area=None, may_shrink=may_shrink, side=side).astype(float)
                for may_shrink in (False, True)
            )
            settings = {"photograph": name, "pixels": side}
            yield Row("mean difference", np.abs(full - small).mean(), "of 255 levels", settings)
            yield Row("PSNR", 10 * np.log10(255**2 / np.mean((full - small) ** 2)), "dB", settings)


def _measure_stream(tar: str, stream: str, batch_size: int, seconds: float) -> dict[str, float]:
    workers, threads = map(int, stream.split("x"))
    tokenizer = Tokenizer.train([_CAPTION.format(animal) for animal in _ANIMALS] * 100, 600, 77)
    example = PairExample(Augment(Preprocess(SIDE)), tokenizer)
    source = open_source(f"webdataset:{tar}", "train")
    begun = time.perf_counter()
    batches = TrainStream(source, example, batch_size=batch_size, seed=0, threads=threads, workers=workers)
    next(batches)
    first = time.perf_counter() - begun
    next(batches)  # workers start one after the other
    count, begun, cpu, memory = 0, time.perf_counter(), _measure_cpu(), (0, 0)
    while time.perf_counter() - begun < seconds:
        next(batches)
        count += batch_size
        memory = tuple(map(max, memory, _measure_memory()))
    rate, core_rate = count / (time.perf_counter() - begun), count / (_measure_cpu() - cpu)
    names = ("first", "rate", "cpu_rate", "memory", "shared_memory")
    return dict(zip(names, (first, rate, core_rate, *memory), strict=True))


def _processes() -> set[str]:
    """Returns the ids of this process and its children."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {str(os.getpid())} | {child for task in tasks for child in task.read_text().split()}


def _measure_cpu() -> float:
    """Returns the seconds of CPU time that this process and its children used."""
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in _processes()]
    return sum(int(user) + int(system) for *_, user, system in (field[:13] for field in fields)) / os.sysconf(
        "SC_CLK_TCK"
    )


def _measure_memory() -> tuple[int, int]:
    """Returns the bytes of memory of this process and its children (shared pages in proportion), and of shared memory."""
    rollups = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in _processes()]
    kib = sum(int(line.split()[1]) for rollup in rollups for line in rollup.split("\n") if line.startswith("Pss:"))
    shared = sum(file.stat().st_size for file in Path("/dev/shm").glob("psm_*"))
    return kib * 1024, shared


def _make_jpeg(width: int, height: int, index: int) -> bytes:
    rng = np.random.default_rng(index)
    shapes = Image.fromarray(rng.integers(0, 256, (max(height // 32, 2), max(width // 32, 2), 3), np.uint8))
    pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = pixels + rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _measure_rate(read) -> float:
    order = np.random.default_rng(0).permutation(COUNT)
    for index in order[:50]:
        read(int(index))
    begun = time.perf_counter()
    for index in order:
        read(int(index))
    return COUNT / (time.perf_counter() - begun)


def _write_folder(path: Path, files: list[bytes]):
    path.mkdir()
    for index, data in enumerate(files):
        (path / f"{index:05d}.jpg").write_bytes(data)
    rows = [json.dumps({"file": f"{index:05d}.jpg", "caption": f"picture {index}"}) for index in range(COUNT)]
    (path / "captions.jsonl").write_text("\n".join(rows))
    return open_source(f"folder:{path}", "train")


def _write_tar(path: Path, files: list[bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for index, data in enumerate(files):
            caption = _CAPTION.format(_ANIMALS[index % len(_ANIMALS)]).encode()
            for name, content in ((f"{index:05d}.jpg", data), (f"{index:05d}.txt", caption)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


class Pictures(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the images."""

    VERSION = tfds.core.Version("1.0.0")
    FILES: list[bytes] = []

    def _info(self):
        features = {"image": tfds.features.Image(encoding_format="jpeg"), "caption": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, data in enumerate(self.FILES):
            yield index, {"image": io.BytesIO(data), "caption": f"picture {index}"}


def _write_tfds(path: Path, files: list[bytes]):
    Pictures.FILES = files
    Pictures(data_dir=str(path)).download_and_prepare(file_format="array_record")
    return open_source("tfds:pictures", "train", data_dir=str(path))


if __name__ == "__main__":
    main(rows, add_arguments)
