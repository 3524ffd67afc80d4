"""CLIP embeddings of an image collection: computed once, stored on disk, rejected if the images have changed.

    records = with_embeddings(clip, source, directory)     records of the source with `embedding` instead of `image`

Embeddings are those before the normalisation to unit length, float32 [dim].
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clip_jax.clip import Clip
from train_jax import paths, precompute
from train_jax.data.errors import DataError
from train_jax.data.precomputed import PrecomputedRecords
from train_jax.data.sources import Source

FIELD = "embedding"
_BLOCK = 4096  # records per block of a mean


def with_embeddings(
    clip: Clip,
    source: Source,
    directory: Path,
    *,
    with_image: bool = False,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> PrecomputedRecords:
    """Returns the records of `source` with the embeddings of their images, computing them if `directory` lacks the file.

    All hosts must call this function, and each computes a share. Errors are those of `train_jax.precompute.ensure_file`.

    Args:
      with_image: whether records keep their image.
      asked_to_stop: returns the number of a received stop signal, or 0.
    """

    def encode(images: Sequence[np.ndarray]) -> Float32[np.ndarray, "n dim"]:
        return clip.encode_image(images, precompute.BATCH, normalize=False)

    shape, model = (clip.module.options.embed_dim,), {"clip": clip.fingerprint, "dtype": clip.dtype}
    computation = precompute.Computation("embeddings", encode, shape, np.float32, clip.preprocess, model)
    file = precompute.ensure_file(computation, source, directory, asked_to_stop)
    return PrecomputedRecords(source, file, FIELD, with_image)


def make_records(
    read_clip: Callable[[], Clip], directory: str, workdir: Path | None, *, with_image: bool = False
) -> Callable:
    """Makes `Task.records` of a task on embeddings: `(source, asked_to_stop) -> records with embeddings`.

    Args:
      read_clip: returns the CLIP; called with each source.
      directory: `config.embeddings.dir`, the directory of the files; "": `embeddings/` in the run directory.
    """
    folder = paths.on_disk(directory or (workdir or Path()) / "embeddings", "config.embeddings.dir")

    def load_records(source: Source, asked_to_stop: Callable[[], int] = lambda: 0) -> PrecomputedRecords:
        return with_embeddings(read_clip(), source, folder, with_image=with_image, asked_to_stop=asked_to_stop)

    return load_records


def mean_and_covariance(
    records: PrecomputedRecords,
) -> tuple[Float32[np.ndarray, "dim"], Float32[np.ndarray, "dim dim"]]:
    """Computes the mean and the covariance of the embeddings of all readable images, summed in float64.

    Raises DataError if an embedding is not finite.
    """
    dim = records.arrays.shape[1]
    count, total, products = 0, np.zeros(dim), np.zeros((dim, dim))
    # The first embedding is subtracted: sums of squares of large means would lose digits.
    origin = np.asarray(records.arrays[np.argmax(records.checksums >= 0)], np.float64)
    for start in range(0, len(records), _BLOCK):
        rows = records.read_block(start, start + _BLOCK).astype(np.float64) - origin
        count, total, products = count + len(rows), total + rows.sum(axis=0), products + rows.T @ rows
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    if not np.isfinite(covariance).all():
        raise DataError(f"{records.file}: embeddings that are not finite; the CLIP that made them is broken")
    return (origin + mean).astype(np.float32), covariance.astype(np.float32)
