"""Training examples of image-text pairs. No JAX in this module: the data loader's workers import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.images import Augment
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class PairExample:
    """Makes a training example, `{"image", "text", "truncated"}`, with one caption of the record drawn at random."""

    augment: Augment
    tokenizer: AnyTokenizer

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record["captions"][rng.integers(len(record["captions"]))]
        pixels = self.augment(record["image"], rng)
        ids, truncated = self.tokenizer.encode_flagged([caption])
        return {"image": pixels, "text": ids[0], "truncated": truncated[0]}
