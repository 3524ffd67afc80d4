"""Cached codes of an image collection: computed once, stored on disk, rejected if the images have changed.

    records = with_codes(vq, source, directory)     records of the source with `codes` instead of `image`

The file name contains a hash of the tokenizer's weights, the collection and the transforms; a JSON file lists all three.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from ml_collections import ConfigDict

from train_jax import paths, precompute
from train_jax.data.images import Preprocess
from train_jax.data.sources import Source
from train_jax.errors import ConfigError
from vqgan_jax.coded import CodedRecords
from vqgan_jax.vqgan import Vqgan, load


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

    All hosts must call this function, and each computes a share of the codes. Errors are those of
    `train_jax.precompute.ensure_file`.

    Args:
      size: side in pixels to which images are resized and cropped; 0: the tokenizer's training size.
      flip: whether to encode horizontally flipped images as well, for augmentation.
      asked_to_stop: returns the number of a received stop signal, or 0.
    """
    preprocess = Preprocess(size or vq.size)
    side, dtype = preprocess.size // vq.factor, np.min_scalar_type(vq.num_codes - 1)

    def encode(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Integer[np.ndarray, "n v h w"]:
        images = np.stack(images)
        views = [images, images[:, :, ::-1]] if flip else [images]
        return np.stack([vq.encode(view, batch_size=precompute.BATCH) for view in views], axis=1)

    computation = precompute.Computation(
        "codes", encode, (1 + flip, side, side), dtype, preprocess, {"tokenizer": vq.fingerprint, "flip": flip}
    )
    return CodedRecords(source, precompute.ensure_file(computation, source, directory, asked_to_stop))


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
