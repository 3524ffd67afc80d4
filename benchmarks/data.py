"""Measures images per second and core of each type of source: reading, decoding and cropping JPEGs of 224 pixels.

    python -m benchmarks.data

Writes 2,000 images of smooth noise as a folder, a tar file and a TFDS data set to a temporary folder, and reads them in one
thread.
"""

import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from train_jax.data.images import Preprocess
from train_jax.data.sources import open_source

COUNT, SIDE = 2_000, 224


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = [_make_jpeg(index) for index in range(COUNT)]
        names = [
            ("folder", _write_folder(root / "folder", files)),
            ("webdataset", _write_tar(root / "data.tar", files)),
            ("tfds", _write_tfds(root / "tfds", files)),
        ]
        size = sum(map(len, files)) / COUNT / 1024
        print(f"{COUNT:,} JPEGs of {SIDE} x {SIDE} pixels, {size:.0f} KiB each, one thread; images per second")
        print("| source | read | read, decode, crop |\n| --- | --- | --- |")
        preprocess = Preprocess(SIDE)
        for name, source in names:
            read = _measure_rate(source.__getitem__)
            ready = _measure_rate(lambda index, s=source: preprocess(s[index]["image"]))
            print(f"| {name} | {read:,.0f} | {ready:,.0f} |", flush=True)


def _make_jpeg(index: int) -> bytes:
    rng = np.random.default_rng(index)
    small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
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


def _write_tar(path: Path, files: list[bytes]):
    with tarfile.open(path, "w") as tar:
        for index, data in enumerate(files):
            for name, content in ((f"{index:05d}.jpg", data), (f"{index:05d}.txt", f"picture {index}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return open_source(f"webdataset:{path}", "train")


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
    main()
