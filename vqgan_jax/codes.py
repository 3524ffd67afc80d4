"""The codes of an image collection: computed once, stored on disk, refused if they are stale.

    records = with_codes(vq, source, directory)     each a record of the source with `codes` instead of `image`

A file is named by a hash of the tokenizer's weights, the collection and the transforms; a JSON file beside it lists these.
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

_FORMAT = 2  # of the files
_PROBES = 512  # records whose images are compared before codes are used again


def with_codes(
    vq: Vqgan,
    source: Source,
    directory: Path,
    *,
    size: int = 0,
    flip: bool = False,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> CodedRecords:
    """Returns the records of `source` with the codes of their images; computes codes that `directory` does not hold.

    All hosts must call it: each computes a share (see `vqgan_jax.code_files`).

    Args:
      size: images are cropped to `size` x `size` pixels; 0: the tokenizer's own size.
      flip: whether to encode mirrored images as well, so that an example can be either.
      asked_to_stop: returns the number of the signal that asks this host to stop, or 0.

    Raises DataError for codes of this name that were made of other images (the collection has changed), and if no image
    can be read; ConfigError for a directory that the hosts do not share; Interrupted if a host is asked to stop.
    """
    preprocess = Preprocess(size or vq.size)
    made_of = {
        "format": _FORMAT,
        "tokenizer": vq.fingerprint,
        "source": source.name,
        "records": len(source),
        "preprocess": json.loads(preprocess.to_json()),
        "flip": flip,
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    file = directory / f"codes-{name}.npy"
    code_files.ensure(vq, source, preprocess, flip, file, made_of, asked_to_stop)
    records = CodedRecords(source, file)
    _check(records)
    return records


def open_frozen(path: str, copy: Path | None) -> Vqgan:
    """Opens a second stage's tokenizer: the run's own `copy`, or for a new run the model at `config.vqgan.path`."""
    if copy is not None and copy.is_file():
        return load(copy)
    if not path:
        raise ConfigError(
            "config.vqgan.path is empty: name the VQGAN of the codes, such as a run directory"
        )
    return load(path)


def make_records(vq: Vqgan, options: ConfigDict, size: int, workdir: Path | None) -> Callable:
    """Builds `Task.records` of a second stage: `(source, asked_to_stop) -> records with codes`.

    Args:
      options: `dir`, the directory of code files, "" for the run directory's `codes/`; `flip`: see `with_codes`.
    """
    directory = paths.on_disk(options.dir or (workdir or Path()) / "codes", "config.codes.dir")

    def records(source: Source, asked_to_stop: Callable[[], int] = lambda: 0) -> CodedRecords:
        return with_codes(vq, source, directory, size=size, flip=options.flip, asked_to_stop=asked_to_stop)

    return records


def _check(records: CodedRecords) -> None:
    """Raises DataError if codes were made of other images, by checksums of records spread over the collection."""
    source, file = records.source, records.file
    for index in sorted(set(np.linspace(0, len(source) - 1, _PROBES).astype(int).tolist())):
        try:
            checksum = zlib.crc32(source[index]["image"])
        except BrokenSample:
            checksum = -1
        if records.checksums[index] not in (checksum, ~checksum):
            raise DataError(
                f"{file} is stale: record {index} of {source.name} has another picture than when codes were made. Remove "
                f"{file.with_suffix('.*')} to compute them again"
            )
