"""Training examples of image-text pairs. This module does not import JAX, since data loader workers import it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from train_jax.data.captions import CaptionChoice
from train_jax.data.errors import DataError
from train_jax.data.images import NATIVE, Augment, Preprocess
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
        """Converts a record to an example: image as `augment` makes it, text int32 [length], whether the text was cut."""
        index = self.choose.index(len(record["captions"]), rng)
        pixels = self.augment(record["image"], rng)
        ids, truncated = self.tokenizer.encode_flagged([record["captions"][index]])
        example = {"image": pixels, "text": ids[0], "truncated": truncated[0]}
        if self.negatives:
            negative = get_negatives(record)[index] or record["captions"][index]
            example["negative"] = self.tokenizer.encode([negative])[0]
        return example


def make_preprocess(model: ConfigDict, preprocess: ConfigDict) -> Preprocess:
    """Makes the image preprocessing of the options `config.model` and `config.preprocess`."""
    image, options = model.image, preprocess.to_dict()
    max_patches = options.pop("max_patches")
    if options["mode"] == NATIVE:
        options |= {"patch": image.patch, "max_patches": max_patches or (image.size // image.patch) ** 2}
    return Preprocess(size=image.size, **options)


def get_negatives(record: Mapping) -> Sequence[str]:
    """Returns the field `negatives` of a record: a false caption like each of its captions, or "" where there is none.

    Raises DataError for a record without such a list.
    """
    negatives, captions = record.get("negatives"), record["captions"]
    if not isinstance(negatives, list | tuple) or len(negatives) != len(captions):
        what = f"{len(negatives)} negatives" if isinstance(negatives, list | tuple) else "no list of negatives"
        raise DataError(
            f"record {record.get('id', '(without id)')} has {len(captions)} captions and {what}: name a source whose "
            "records have a false caption for each in the field 'negatives', such as shapes/32, or do without negatives "
            "(--config.contrastive.negatives=0)"
        )
    return negatives
