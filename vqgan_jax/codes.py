"""Cached codes of an image collection: computed once, stored on disk, rejected if the images have changed.

    records = with_codes(vq, source, directory)     records of the source with `codes` instead of `image`

The file name contains a hash of the tokenizer's weights, the collection and the transforms; a JSON file lists all three.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from train_jax import paths
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.images import Preprocess
from train_jax.data.sources import Source
from train_jax.errors import ConfigError
from vqgan_jax import code_files
from vqgan_jax.coded import CodedRecords
from vqgan_jax.vqgan import Vqgan, load

_FORMAT = 2  # version of the file format
_PROBES = 512  # number of images whose checksums are compared before codes are reused


def with_codes(
    vq: Vqgan,
    source: Source,
    directory: Path,
    *,
    size: int = 0,
    flip: bool = False,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> CodedRecords:
    """Returns the records of `source` with the codes of their images, computing the codes if `directory` lacks the file.

    All hosts must call this function, and each computes a share of the codes (see `vqgan_jax.code_files`).

    Args:
      size: side in pixels to which images are resized and cropped; 0: the tokenizer's training size.
      flip: whether to encode horizontally flipped images as well, for augmentation.
      asked_to_stop: returns the number of a received stop signal, or 0.

    Raises DataError if stored codes belong to other images (the collection has changed) or if no image can be read,
    ConfigError if the hosts do not share the directory, and Interrupted if a host is asked to stop.
    """
    preprocess = Preprocess(size or vq.size)
    provenance = {
        "format": _FORMAT,
        "tokenizer": vq.fingerprint,
        "source": source.name,
        "records": len(source),
        "preprocess": json.loads(preprocess.to_json()),
        "flip": flip,
    }
    name = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:16]
    file = directory / f"codes-{name}.npy"
    code_files.ensure_code_file(vq, source, preprocess, flip, file, provenance, asked_to_stop)
    records = CodedRecords(source, file)
    _check_checksums(records)
    return records


def open_tokenizer(path: str, copy: Path | None) -> Vqgan:
    """Opens the frozen VQGAN of a second stage: the run's `copy` if it exists, else the model at `path`."""
    # As trained: codes, and the copy that a run keeps, must not depend on the machine that goes on.
    if copy is not None and copy.is_file():
        return load(copy, dtype=None)
    if not path:
        raise ConfigError(
            "config.vqgan.path is empty: set it to the VQGAN of the codes, such as a run directory"
        )
    return load(path, dtype=None)


def make_records(vq: Vqgan, options: ConfigDict, size: int, workdir: Path | None) -> Callable:
    """Builds `Task.records` of a second stage: `(source, asked_to_stop) -> records with codes`.

    Args:
      options: `config.codes`: `dir`, the directory of code files ("": `codes/` in the run directory), and `flip` as in
        `with_codes`.
    """
    directory = paths.on_disk(options.dir or (workdir or Path()) / "codes", "config.codes.dir")

    def load_records(source: Source, asked_to_stop: Callable[[], int] = lambda: 0) -> CodedRecords:
        return with_codes(vq, source, directory, size=size, flip=options.flip, asked_to_stop=asked_to_stop)

    return load_records


def _check_checksums(records: CodedRecords) -> None:
    """Raises DataError if the checksums of evenly spaced images differ from those stored with the codes."""
    source, file = records.source, records.file
    for index in sorted(set(np.linspace(0, len(source) - 1, _PROBES).astype(int).tolist())):
        try:
            checksum = zlib.crc32(source[index]["image"])
        except BrokenSample:
            checksum = -1
        if records.checksums[index] not in (checksum, ~checksum):
            raise DataError(
                f"{file} is stale: record {index} of {source.name} has another image than when codes were computed. Remove "
                f"{file.with_suffix('.*')} to compute them again"
            )
