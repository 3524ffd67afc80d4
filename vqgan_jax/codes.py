"""The codes of a whole collection of images: computed once, kept on disk, refused when they are stale.

    records = with_codes(vq, source, directory)     each a record of the source with `codes` instead of `image`

A file is named by a hash of the tokenizer's weights, the collection and the transforms; what it was made of stands beside
it.
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
from vqgan_jax.coded import Coded
from vqgan_jax.vqgan import Vqgan, load

_FORMAT = 2  # of the files
_PROBED = 512  # records whose pictures are compared before codes are used again


def with_codes(
    vq: Vqgan,
    source: Source,
    directory: Path,
    *,
    size: int = 0,
    flip: bool = False,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> Coded:
    """The records of `source` with the codes of their pictures, which are computed where `directory` does not hold them.

    All hosts must call it: each computes a share (see `vqgan_jax.code_files`).

    Args:
      size: pictures are cropped to `size` x `size` pixels; 0: the tokenizer's own size.
      flip: also of the pictures mirrored left to right, so that an example can be either.
      asked_to_stop: tells the number of the signal that asks this host to stop, or 0.

    Raises DataError for codes of this name that were made of other pictures (the collection has changed), and if no picture
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
    coded = Coded(source, file)
    _check(coded)
    return coded


def open_frozen(path: str, kept: Path | None) -> Vqgan:
    """The tokenizer of a run that learns codes: its own copy, `kept`, or, for a new run, what `config.vqgan.path` names."""
    if kept is not None and kept.is_file():
        return load(kept)
    if not path:
        raise ConfigError(
            "config.vqgan.path is empty: name the VQGAN whose codes are to be learnt, such as a run directory"
        )
    return load(path)


def records_of(vq: Vqgan, options: ConfigDict, size: int, workdir: Path | None) -> Callable:
    """`Task.records` of a run that learns codes: `(source, asked_to_stop) -> records with codes`.

    Args:
      options: `dir`, where codes are kept, "" for the run directory's `codes/`; `flip`: see `with_codes`.
    """
    directory = paths.on_disk(options.dir or (workdir or Path()) / "codes", "config.codes.dir")

    def records(source: Source, asked_to_stop: Callable[[], int] = lambda: 0) -> Coded:
        return with_codes(vq, source, directory, size=size, flip=options.flip, asked_to_stop=asked_to_stop)

    return records


def _check(coded: Coded) -> None:
    """Pictures of records spread over the collection must be those that the codes were made of."""
    source, file = coded.source, coded.file
    for place in sorted(set(np.linspace(0, len(source) - 1, _PROBED).astype(int).tolist())):
        try:
            checksum = zlib.crc32(source[place]["image"])
        except BrokenSample:
            checksum = -1
        if coded.checksums[place] not in (checksum, ~checksum):
            raise DataError(
                f"{file} is stale: record {place} of {source.name} has another picture than when codes were made. Remove "
                f"{file.with_suffix('.*')} to make them anew"
            )
