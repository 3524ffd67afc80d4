"""Maps as conditions of taming's second stages: segmentations, depths, images or coordinates, as a grid of tokens.

A map has the size of the training images. Its tokens are the codes of a VQGAN of its own, or rounded means of squares
(coordinates); codes of images follow them in one sequence (arXiv 2012.09841, section 4.2).
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32

from train_jax.data import files
from vqgan_jax.model import Autoencoder
from vqgan_jax.stage2.condition import Tokens


@runtime_checkable
class MapEncoder(Protocol):
    """Interface of encoders of maps.

    Attributes:
      factor: side of a token in pixels.
      vocabulary_size: number of distinct tokens.
      fingerprint: string that identifies the encoder.
    """

    factor: int
    vocabulary_size: int
    fingerprint: str

    def check(self, array: np.ndarray, size: int) -> np.ndarray:
        """Returns a map of `size` x `size` pixels as it is encoded. Raises ValueError for any other array."""

    def encode(self, maps: np.ndarray) -> Int32[np.ndarray, "n h w"]:
        """Encodes checked maps [n, …] to tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class CodedMaps:
    """Maps that a VQGAN encodes: labels [size, size] of a segmentation, or values [size, size, channels] in [-1, 1].

    Attributes:
      module: VQGAN, of which only the encoder and the quantiser are used.
      variables: their weights.
      fingerprint: see `MapEncoder`.
      channels: number of channels that the encoder reads.
      is_segmentation: whether maps are integers below `channels`, which the encoder reads as one-hot vectors.
    """

    module: Autoencoder
    variables: Mapping
    fingerprint: str
    channels: int
    is_segmentation: bool

    @property
    def factor(self) -> int:
        """Side in values of what a token stands for."""
        return self.module.factor

    @property
    def vocabulary_size(self) -> int:
        """Number of codes."""
        return self.module.quantizer.size

    def check(self, array: np.ndarray, size: int) -> np.ndarray:
        """Returns a map of the right dtype. Raises ValueError for another shape, dtype or range."""
        if self.is_segmentation:
            _require(array, (size, size), "iu", 0, self.channels - 1, "a segmentation")
            return array.astype(np.int32)
        _require(array, (size, size, self.channels), "f", -1, 1, "a map")
        return array.astype(np.float32)

    def encode(self, maps: np.ndarray) -> Int32[np.ndarray, "n h w"]:
        """Encodes maps as codes."""
        return np.asarray(self._program(self.variables, maps))

    @functools.cached_property
    def _program(self) -> Callable:
        def encode(variables, maps):
            values = jax.nn.one_hot(maps, self.channels) if self.is_segmentation else maps
            return self.module.apply(variables, values, method="encode")

        return jax.jit(encode)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Maps [size, size] in [0, 1], such as positions in a larger image: each token is the rounded mean of a square.

    Attributes:
      levels: token of a mean of 1.
      factor, vocabulary_size: see `MapEncoder`; the table of the transformer may have no row for the largest tokens.
    """

    levels: int
    factor: int
    vocabulary_size: int

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens."""
        return f"coordinates {self.levels} {self.factor}"

    def check(self, array: np.ndarray, size: int) -> np.ndarray:
        """Returns a map in float32. Raises ValueError for another shape, dtype or range."""
        _require(array, (size, size), "f", 0, 1, "coordinates")
        if (largest := self.encode(array[None]).max()) >= self.vocabulary_size:
            raise ValueError(f"coordinates with the token {largest}: the model has tokens below {self.vocabulary_size}")
        return array.astype(np.float32)

    def encode(self, maps: np.ndarray) -> Int32[np.ndarray, "n h w"]:
        """Encodes maps as rounded means of squares."""
        side = maps.shape[1] // self.factor
        means = maps.reshape(-1, side, self.factor, side, self.factor).mean(axis=(2, 4), dtype=np.float32)
        return np.rint(np.float32(self.levels) * means).astype(np.int32)


def _require(array: np.ndarray, shape: tuple[int, ...], kinds: str, low: int, high: int, what: str) -> None:
    is_number = array.dtype.kind in kinds
    if array.shape != shape or not is_number or not (array.min() >= low and array.max() <= high):
        values = f" from {array.min()} to {array.max()}" if array.size and is_number else ""
        numbers = "integers" if kinds == "iu" else "floats"
        raise ValueError(
            f"the condition must be {what}, {numbers} {list(shape)} from {low} to {high}, not {array.dtype} "
            f"{list(array.shape)}{values}"
        )


@dataclasses.dataclass(frozen=True)
class MapCondition:
    """A map, as an array or an `.npy` file, as condition; see `vqgan_jax.stage2.condition.Condition`.

    Attributes:
      size: side of maps in pixels, that of the training images.
      reduced: side to which maps are reduced by their nearest pixels before they are encoded; 0: they are not.
    """

    encoder: MapEncoder
    size: int
    reduced: int = 0

    kind = "map"
    none = None
    predicted = False
    padding = None
    droppable = False

    @property
    def length(self) -> int:
        """Number of tokens of a map."""
        return token_count(self.encoder, self.reduced or self.size)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self.encoder.vocabulary_size

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens: two conditions with equal ones can replace each other."""
        return f"map {self.size} {self.reduced} {self.encoder.fingerprint}"

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        """Tokens with the shape of a map's; maps are never dropped."""
        return np.zeros(self.length, np.int32)  # for shapes alone, as maps are never dropped

    def drop(self, tokens: Tokens) -> Tokens:
        """Returns `null`, for shapes alone."""
        return self.null[None]

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Encodes maps to tokens. Raises ValueError for what is no such map."""
        maps = np.stack([self._read(value) for value in conditions])
        if self.reduced:
            nearest = np.arange(self.reduced) * self.size // self.reduced
            maps = maps[:, nearest][:, :, nearest]
        return self.encoder.encode(maps).reshape(len(maps), -1)

    def seed(self, condition: Any) -> int:
        """Computes the seed of a map: CRC-32 of its values."""
        return zlib.crc32(np.ascontiguousarray(self._read(condition)).tobytes())

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Raises NotImplementedError: records have no maps."""
        raise NotImplementedError("records have no maps")

    def check_source(self, source) -> None:
        """Raises NotImplementedError: records have no maps."""
        raise NotImplementedError("records have no maps")

    def from_source(self, source, count: int) -> list[Any]:
        """Raises NotImplementedError: records have no maps."""
        raise NotImplementedError("records have no maps")

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns True for all tokens."""
        return tokens >= 0

    def _read(self, condition: Any) -> np.ndarray:
        if isinstance(condition, str | os.PathLike):
            condition = files.read_array(condition)
        if not isinstance(condition, np.ndarray):
            raise ValueError(f"the condition must be a map, an array or its file .npy, not {condition!r}")
        return self.encoder.check(condition, self.size)


def token_count(encoder: MapEncoder, size: int) -> int:
    """Returns the number of tokens of a map of `size` x `size` pixels."""
    return (size // encoder.factor) ** 2
