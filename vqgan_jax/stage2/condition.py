"""Conditions of a second stage: tokens in front of the codes."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32

from train_jax.data.errors import BrokenSample

Tokens = Any  # NumPy's on the host, JAX's inside a compiled program


@runtime_checkable
class Condition(Protocol):
    """Interface of conditions, and their encoding as tokens.

    Attributes:
      kind: the noun for a condition, for messages and metrics: "class", "text".
      none: the value for no condition: None, or the empty text.
      length: tokens per condition.
      vocabulary_size: number of different tokens.
      predicted: whether the model also predicts the condition's tokens, as DALL-E does.
      droppable: whether the model was also trained on codes without condition, as classifier-free guidance requires.
      fingerprint: a hash that identifies the meaning of tokens.
    """

    kind: str
    none: Any
    length: int
    vocabulary_size: int
    predicted: bool
    droppable: bool
    fingerprint: str

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        """Tokens of no condition."""

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Encodes conditions as tokens. Raises ValueError or TypeError for unknown conditions."""

    def seed(self, condition: Any) -> int:
        """Returns a hash of a condition, below 2^32, for the noise of its samples."""

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns a record's `condition`, int32 [length], and flags to average; without `rng`, those of evaluations."""

    def of_source(self, source, count: int) -> list[Any]:
        """Returns the first `count` conditions of a source, for samples."""

    def scored(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns True for the tokens that count in a condition's likelihood."""


@dataclasses.dataclass(frozen=True)
class ClassCondition:
    """A class as a condition, one token: the class, or `classes` for images without label.

    Attributes:
      classes: number of classes; 0: images have no labels.
    """

    classes: int
    droppable: bool = True

    kind = "class"
    none = None
    length = 1
    predicted = False

    @property
    def vocabulary_size(self) -> int:
        return self.classes + 1

    @property
    def fingerprint(self) -> str:
        return f"{self.classes} classes"

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        return np.array([self.classes], np.int32)

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Encodes labels as tokens, None for no label. Raises ValueError for unknown labels."""
        for label in conditions:
            if label is None and not self.droppable:
                raise ValueError(f"this model knows no image without a label; name labels, 0 to {self.classes - 1}")
            if label is not None and not self.classes:
                raise ValueError("this model was trained without labels; leave them out")
            if label is not None and not (isinstance(label, int | np.integer) and 0 <= label < self.classes):
                raise ValueError(f"label {label!r}: this model knows 0 to {self.classes - 1}")
        return np.array([[self.classes if label is None else label] for label in conditions], np.int32).reshape(-1, 1)

    def seed(self, condition: int | np.integer | None) -> int:
        return zlib.crc32(str(condition).encode())

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        label = int(record.get("label", -1)) if self.classes else -1  # below 0: an image without a label
        if label >= self.classes:
            raise BrokenSample(f"label {label}, where config.model.classes = {self.classes}")
        return {"condition": np.array([label if label >= 0 else self.classes], np.int32)}

    def of_source(self, source, count: int) -> list[int | None]:
        return [i % self.classes if self.classes else None for i in range(count)]

    def scored(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        return tokens >= 0
