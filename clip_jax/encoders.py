"""Encoders of collections of images and texts for evaluators, and the records that they evaluate."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import numpy as np

from clip_jax.feature_cache import FeatureCache
from train_jax import inference
from train_jax.data.images import Preprocess
from train_jax.data.sources import DataError, Source
from train_jax.data.subset import Subset
from train_jax.data.text import AnyTokenizer


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Factory of functions that encode collections of images and texts.

    Attributes:
      module: module with the methods `encode_image` and `encode_text` of `clip_jax.model.CLIP`.
      cache: image features that several evaluators share, of a model whose weights do not change; None: no sharing.
    """

    module: nn.Module
    tokenizer: AnyTokenizer
    preprocess: Preprocess
    cache: FeatureCache | None = None

    def make_image_encoder(self, context, batch_size: int) -> Callable:
        """Makes `encode(variables, records) -> float32 [n, dim]`, which runs on all hosts and compiles once."""

        def example(record, rng):
            return {"image": self.preprocess.pack(self.preprocess(record["image"]))}

        encode = self._make_encoder(context, self._encode_image, example, batch_size)
        if self.cache is None:
            return encode
        cache = self.cache
        return lambda variables, records: cache.encode(lambda missing: encode(variables, missing), records)

    def make_text_encoder(self, context, batch_size: int) -> Callable:
        """Makes `encode(variables, texts) -> float32 [n, dim]`, which runs on all hosts and compiles once."""

        def example(text, rng):
            return {"text": self.tokenizer.encode([text])[0]}

        return self._make_encoder(context, self._encode_text, example, batch_size)

    def tells_apart(self, a: str, b: str) -> bool:
        """Returns whether the model reads different tokens of two texts."""
        return not np.array_equal(*self.tokenizer.encode([a, b]))

    def _encode_image(self, variables, batch):
        pixels = self.preprocess.normalize(batch["image"])
        return self.module.apply(variables, pixels, method="encode_image")

    def _encode_text(self, variables, batch):
        return self.module.apply(variables, batch["text"], method="encode_text")

    @staticmethod
    def _make_encoder(context, function: Callable, make_example: Callable, batch_size: int) -> Callable:
        """Makes `(variables, records) -> features`, which encodes padded batches and drops the padding."""
        jitted = context.jit(function)

        def encode(variables, records: Sequence) -> np.ndarray:
            batches = context.batches(records, make_example, batch_size)
            outputs = ((jitted(variables, batch), num_real) for batch, num_real in batches)
            return np.concatenate([rows[:num_real] for rows, num_real in inference.fetch_overlapped(outputs)])

        return encode


def select_labelled(source: Source, most: int = 0) -> tuple[Subset, np.ndarray]:
    """Selects the labelled records of a source and returns them and their labels, int [n].

    Args:
      most: maximum number of records, a random sample; 0: all.

    Raises DataError if no record has a label.
    """
    indices = np.random.default_rng(0).permutation(len(source)) if most else np.arange(len(source))
    pairs = ((index, source.metadata(int(index)).get("label", -1)) for index in indices)
    labelled = sorted(itertools.islice((pair for pair in pairs if pair[1] >= 0), most or None))
    if not labelled:
        raise DataError(f"{source.name}: no record has a label")
    indices, labels = np.array(labelled).T
    return Subset(source, indices), labels
