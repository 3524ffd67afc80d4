"""Examples of the tasks of unCLIP. This module does not import JAX, because data workers import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.captions import CaptionChoice
from train_jax.data.images import Augment
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class EmbeddingExample:
    """Converts a record with an embedding to `{"embedding", "text", "truncated"}`, with a random caption.

    Attributes:
      augment: augmentation of the image, for examples that also have the `image`; None: without it.
    """

    tokenizer: AnyTokenizer
    choose: CaptionChoice
    augment: Augment | None = None

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Converts a record to an example; `augment`: with its image."""
        ids, truncated = self.tokenizer.encode_flagged([self.choose(record["captions"], rng)])
        example = {"embedding": record["embedding"], "text": ids[0], "truncated": truncated[0]}
        if self.augment is not None:
            example["image"] = self.augment(record["image"], rng)
        return example


@dataclasses.dataclass(frozen=True)
class ImageExample:
    """Converts a record to `{"image"}`."""

    augment: Augment

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Converts a record to an example."""
        return {"image": self.augment(record["image"], rng)}
