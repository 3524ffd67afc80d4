"""Training examples of image-text pairs. This module does not import JAX, since data loader workers import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.captions import choose_caption
from train_jax.data.images import Augment
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class PairExample:
    """Transform of a record to a training example `{"image", "text", "truncated"}`, with a random caption."""

    augment: Augment
    tokenizer: AnyTokenizer
    first_caption: float = 0.0  # probability of a record's first caption; else any is chosen

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        caption = choose_caption(record["captions"], rng, self.first_caption)
        pixels = self.augment(record["image"], rng)
        ids, truncated = self.tokenizer.encode_flagged([caption])
        return {"image": pixels, "text": ids[0], "truncated": truncated[0]}
