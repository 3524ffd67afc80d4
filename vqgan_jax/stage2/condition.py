"""Conditions of a second stage, encoded as tokens that precede the codes."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32

from train_jax.data.errors import BrokenSample, DataError

Tokens = Any  # NumPy arrays on the host, JAX arrays inside jit


@runtime_checkable
class Condition(Protocol):
    """Interface of conditions and of their encoding to tokens.

    Attributes:
      kind: noun for messages and metric names, such as "class" or "text".
      none: value of an empty condition: None, or the empty string.
      length: number of tokens per condition.
      vocabulary_size: number of distinct tokens; None: tokens are features, float32 [length, features + 1] for each
        condition (`nn_jax.code_transformer.FeatureEmbedding`).
      predicted: whether a model of one stream also predicts the tokens of the condition, like DALL-E.
      padding: token that an encoder of the condition does not read, or None.
      droppable: whether the model is also trained without condition, as classifier-free guidance requires.
      fingerprint: string that identifies the meaning of tokens.
    """

    kind: str
    none: Any
    length: int
    vocabulary_size: int | None
    predicted: bool
    padding: int | None
    droppable: bool
    fingerprint: str

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        """Tokens of the empty condition."""

    def drop(self, tokens: Tokens) -> Tokens:
        """Returns the tokens of conditions [n, …] that are dropped, for guidance: one row for all, or one for each."""

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Encodes conditions to tokens. Raises ValueError or TypeError for unknown conditions."""

    def seed(self, condition: Any) -> int:
        """Returns a hash of a condition, below 2^32, which seeds the sampling noise."""

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns the `condition` of a record, int32 [length], and boolean flags that are averaged as metrics.

        `rng` is None in evaluations, which use the first condition of a record.
        """

    def check_source(self, source) -> None:
        """Raises DataError for a source with conditions that the model does not have, before images are read."""

    def from_source(self, source, count: int) -> list[Any]:
        """Returns the first `count` conditions of a source, to sample images from."""

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns the mask of tokens that count in the likelihood of a condition."""


@dataclasses.dataclass(frozen=True)
class ClassCondition:
    """A class as condition, encoded as one token: the label, or `classes` without label.

    Attributes:
      classes: number of classes; 0 for images without labels.
    """

    classes: int
    droppable: bool = True

    kind = "class"
    none = None
    length = 1
    predicted = False
    padding = None

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens: the classes, and one for no class."""
        return self.classes + 1

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens: two conditions with equal ones can replace each other."""
        return f"{self.classes} classes"

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        """The token of no class."""
        return np.array([self.classes], np.int32)

    def drop(self, tokens: Tokens) -> Tokens:
        """Returns `null`, which stands for each row."""
        return self.null[None]

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Encodes labels to tokens; None means no label. Raises ValueError for unknown labels."""
        for label in conditions:
            if label is None and not self.droppable:
                raise ValueError(f"this model was not trained without labels; pass labels 0 to {self.classes - 1}")
            if label is not None and not self.classes:
                raise ValueError("this model was trained without labels; leave them out")
            if label is not None and not (isinstance(label, int | np.integer) and 0 <= label < self.classes):
                raise ValueError(f"label {label!r}: this model has labels 0 to {self.classes - 1}")
        return np.array([[self.classes if label is None else label] for label in conditions], np.int32).reshape(-1, 1)

    def seed(self, condition: int | np.integer | None) -> int:
        """Computes the seed of a class: CRC-32 of its number."""
        return zlib.crc32(str(condition).encode())

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns the token of a record's label. Raises BrokenSample for a label that is no class."""
        label = int(record.get("label", -1)) if self.classes else -1  # below 0: image without label
        if label >= self.classes:
            raise BrokenSample(f"label {label}, where config.model.classes = {self.classes}")
        return {"condition": np.array([label if label >= 0 else self.classes], np.int32)}

    def check_source(self, source) -> None:
        """Raises DataError for a label that is no class."""
        if not self.classes or len(source.label_names or ()) <= self.classes:
            return
        largest = max(source.metadata(index).get("label", -1) for index in range(len(source)))
        if largest >= self.classes:
            raise DataError(f"{source.name} has the label {largest}, and the model has labels 0 to {self.classes - 1}")

    def from_source(self, source, count: int) -> list[int | None]:
        """Returns `count` classes, one after the other."""
        return [i % self.classes if self.classes else None for i in range(count)]

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns True for all tokens."""
        return tokens >= 0
