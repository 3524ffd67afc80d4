"""Image features of one model, computed once for each image of a collection; with a folder, kept on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from train_jax.data.errors import DataError
from train_jax.data.sources import Source, compute_fingerprint
from train_jax.data.subset import Subset

_CHUNK = 2**14  # images between writes to disk: what an interruption costs


class FeatureCache:
    """Cache of the image features of one model.

    Args:
      model: fingerprint of the model and its precision.
      folder: folder of the files, in which each model and source has a folder `MODEL-SOURCE` of its own; None: the features
        are kept in memory.
    """

    def __init__(self, model: str, folder: Path | None = None):
        self._model, self._folder = model, folder
        self._tables: dict[str, _Table] = {}

    def encode(self, encode: Callable[[Subset], np.ndarray], records: Sequence) -> Float32[np.ndarray, "n dim"]:
        """Returns the features of records of a source; calls `encode` for those that are not known yet."""
        if not (isinstance(records, Subset) and isinstance(records.records, Source)):
            return encode(records)
        source, indices = records.records, np.asarray(records.indices, np.int64)
        key = compute_fingerprint(source)
        if key not in self._tables:
            folder = None if self._folder is None else self._folder / f"{self._model[:32]}-{key[:32]}"
            self._tables[key] = _Table(len(source), folder)
        table = self._tables[key]
        missing = np.unique(indices[~table.is_known[indices]])
        for start in range(0, len(missing), _CHUNK):
            rows = missing[start : start + _CHUNK]
            table.store(rows, encode(Subset(source, rows)))
        return table.read(indices)


class _Table:
    """Features of a source, by index of the record. On disk, a row counts once its mark is written, after it."""

    def __init__(self, count: int, folder: Path | None):
        self._count, self._folder, self._features = count, folder, None
        if folder is None:
            self.is_known = np.zeros(count, bool)
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.is_known = self._open("known.npy", bool, (count,))
        if self.is_known.any():
            self._features = self._open("features.npy", np.float32, None)

    def store(self, rows: np.ndarray, features: np.ndarray) -> None:
        """Stores the features of rows."""
        if self._features is None:
            shape = (self._count, features.shape[1])
            in_memory = self._folder is None
            self._features = np.zeros(shape, np.float32) if in_memory else self._open("features.npy", np.float32, shape)
        self._features[rows] = features
        if self._folder is not None:
            self._features.flush()
        self.is_known[rows] = True
        if self._folder is not None:
            self.is_known.flush()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns the features of known rows."""
        return np.array(self._features[rows])

    def _open(self, name: str, dtype, shape: tuple[int, ...] | None) -> np.memmap:
        """Maps a file of the folder into memory; creates it if it is missing. Raises DataError if it is damaged."""
        file = self._folder / name
        try:
            if shape is not None and not file.exists():
                return np.lib.format.open_memmap(file, "w+", dtype, shape)
            array = np.lib.format.open_memmap(file, "r+")
            if array.dtype != dtype or len(array) != self._count or (shape is not None and array.shape != shape):
                raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        except (OSError, ValueError) as error:
            raise DataError(f"{file} does not hold the features of this model and source ({error}): remove it") from error
        return array
