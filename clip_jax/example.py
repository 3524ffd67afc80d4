"""Examples of image-text pairs. Without JAX: processes that read examples import this module."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.images import Augment
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class PairExample:
    """`(record, rng) -> {"image", "text", "truncated"}`, of one of the record's captions."""

    augment: Augment
    tokenizer: AnyTokenizer

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record["captions"][rng.integers(len(record["captions"]))]
        pixels = self.augment(record["image"], rng)
        ids, truncated = self.tokenizer.encode_flagged([caption])
        return {"image": pixels, "text": ids[0], "truncated": truncated[0]}
