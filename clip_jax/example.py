"""Training examples of image-text pairs. This module does not import JAX, since data loader workers import it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train_jax.data.captions import CaptionChoice
from train_jax.data.errors import DataError
from train_jax.data.images import Augment
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class PairExample:
    """Transform of a record to a training example `{"image", "text", "truncated"}`, with a random caption.

    With `negatives`, also `{"negative"}`: the record's field `negatives` has a false caption like each caption. Where it is
    empty, `negative` equals `text`. Raises DataError for a record without the field.
    """

    augment: Augment
    tokenizer: AnyTokenizer
    choose: CaptionChoice = CaptionChoice()
    negatives: bool = False

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        index = self.choose.index(len(record["captions"]), rng)
        pixels = self.augment(record["image"], rng)
        ids, truncated = self.tokenizer.encode_flagged([record["captions"][index]])
        example = {"image": pixels, "text": ids[0], "truncated": truncated[0]}
        if self.negatives:
            example["negative"] = self.tokenizer.encode([_get_negative(record, index)])[0]
        return example


def _get_negative(record: Mapping, index: int) -> str:
    """Returns the false caption like the caption at `index`, or that caption if there is none."""
    negatives = record.get("negatives", ())
    if len(negatives) != len(record["captions"]):
        raise DataError(
            f"record {record['id']} has {len(record['captions'])} captions and {len(negatives)} negatives: "
            "config.contrastive.negatives needs a false caption for each, in the field 'negatives' of a record; set it to 0"
        )
    return negatives[index] or record["captions"][index]
