"""The codes of a whole collection of images: computed once, kept on disk, refused when they are stale.

    records = with_codes(vq, source, directory)     each a record of the source with `codes` instead of `image`

A file is named by a hash of the tokenizer's weights, the collection and the transforms; what it was made of stands beside
it.
"""

import dataclasses
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.images import Preprocess
from train_jax.data.sources import Source
from train_jax.errors import ConfigError
from vqgan_jax.vqgan import Vqgan, load

log = logging.getLogger(__name__)

_BATCH = 64
_PROBED = 512  # records whose pictures are compared before codes are used again
_BROKEN = -1  # in the place of every code of a picture that cannot be read


def with_codes(vq: Vqgan, source: Source, directory: Path, *, size: int = 0, flip: bool = False) -> "Coded":
    """The records of `source` with the codes of their pictures, which are computed where `directory` does not hold them.

    Args:
      size: pictures are cropped to `size` x `size` pixels; 0: the tokenizer's own size.
      flip: also of the pictures mirrored left to right, so that an example can be either.

    Raises DataError for codes of this name that were made of other pictures: the collection has changed.
    """
    preprocess = Preprocess(size or vq.size)
    made_of = {
        "tokenizer": vq.fingerprint,
        "source": source.name,
        "records": len(source),
        "preprocess": json.loads(preprocess.to_json()),
        "flip": flip,
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    file = directory / f"codes-{name}.npy"
    if not file.is_file() and jax.process_index() == 0:
        _write(vq, source, preprocess, flip, file, made_of)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"codes {name}")
        if not file.is_file():  # a directory that the hosts do not share
            _write(vq, source, preprocess, flip, file, made_of)
    codes = np.load(file, mmap_mode="r", allow_pickle=False)
    _check(codes, source, file)
    return Coded(source, codes)


def open_frozen(path: str, kept: Path | None) -> Vqgan:
    """The tokenizer of a run that learns codes: its own copy, `kept`, or, for a new run, what `config.vqgan.path` names."""
    if kept is not None and kept.is_file():
        return load(kept)
    if not path:
        raise ConfigError(
            "config.vqgan.path is empty: name the VQGAN whose codes are to be learnt, such as a run directory"
        )
    return load(path)


@dataclasses.dataclass(frozen=True, eq=False)
class Coded(Sequence):
    """Records with codes.

    Attributes:
      codes: int32 [records, 1 or 2, h, w]: of the picture, and of its mirror image.
    """

    source: Source
    codes: np.ndarray

    @property
    def name(self) -> str:
        return f"codes of {self.source.name}"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping:
        record = dict(self.source[index])
        record.pop("image")
        codes = self.codes[index]
        if codes.flat[0] == _BROKEN:
            raise BrokenSample(f"{record['id']}: the picture could not be read when codes were made")
        return record | {"codes": np.asarray(codes)}


def choose(codes: Int32[np.ndarray, "v h w"], rng: np.random.Generator) -> Int32[np.ndarray, "h w"]:
    """One of a record's codes: of the picture, or of its mirror image where there is one."""
    return codes[rng.integers(len(codes))] if len(codes) > 1 else codes[0]


def _write(vq: Vqgan, source: Source, preprocess: Preprocess, flip: bool, file: Path, made_of: Mapping) -> None:
    side = preprocess.size // vq.factor
    codes = np.full((len(source), 1 + flip, side, side), _BROKEN, np.int32)
    sums = np.zeros(len(source), np.uint32)
    broken = 0
    with tqdm(total=len(source), unit="image", desc=f"codes of {source.name}") as bar:
        for start in range(0, len(source), _BATCH):
            places, pictures = [], []
            for place in range(start, min(start + _BATCH, len(source))):
                try:
                    record = source[place]
                    sums[place] = zlib.crc32(record["image"])
                    pictures.append(preprocess(record["image"]))
                    places.append(place)
                except BrokenSample as error:
                    broken += 1
                    log.warning("%s: %s", source.name, error)
            if places:
                batch = np.stack(pictures)
                codes[places, 0] = vq.encode(batch, batch_size=_BATCH)
                if flip:
                    codes[places, 1] = vq.encode(batch[:, :, ::-1], batch_size=_BATCH)
            bar.update(min(start + _BATCH, len(source)) - start)
    if broken == len(source):
        raise DataError(f"{source.name}: none of its {broken} pictures can be read")
    file.parent.mkdir(parents=True, exist_ok=True)
    # The codes come last: a file that is there is whole, and what it was made of stands beside it.
    _replace(file.with_suffix(".json"), lambda f: f.write(json.dumps(dict(made_of), indent=2).encode()))
    _replace(file.with_suffix(".crc.npy"), lambda f: np.save(f, sums))
    _replace(file, lambda f: np.save(f, codes))


def _replace(file: Path, write) -> None:
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    with unfinished.open("wb") as f:
        write(f)
    unfinished.replace(file)


def _check(codes: np.ndarray, source: Source, file: Path) -> None:
    """Pictures of records spread over the collection must be those that the codes were made of."""
    sums = np.load(file.with_suffix(".crc.npy"), allow_pickle=False)
    for place in sorted(set(np.linspace(0, len(source) - 1, _PROBED).astype(int).tolist())):
        try:
            found = zlib.crc32(source[place]["image"])
        except BrokenSample:
            found = 0
        if found != sums[place] or len(codes) != len(source):
            raise DataError(
                f"{file} is stale: record {place} of {source.name} has another picture than when codes were made. Remove "
                f"{file.with_suffix('.*')} to make them anew"
            )
