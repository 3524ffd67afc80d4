"""Training examples of image-text pairs. This module does not import JAX, since data loader workers import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.captions import CaptionChoice
from train_jax.data.images import Augment
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class PairExample:
    """Transform of a record to a training example `{"image", "text", "truncated"}`, with a random caption."""

    augment: Augment
    tokenizer: AnyTokenizer
    choose: CaptionChoice = CaptionChoice()

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        caption = self.choose(record["captions"], rng)
        pixels = self.augment(record["image"], rng)
        ids, truncated = self.tokenizer.encode_flagged([caption])
        return {"image": pixels, "text": ids[0], "truncated": truncated[0]}
