"""Training of a tokenizer on the captions of a source."""

import functools
import logging
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from train_jax.data import sources
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError

log = logging.getLogger(__name__)


def train_tokenizer(data: ConfigDict, max_records: int, vocab_size: int, context_length: int) -> Tokenizer:
    """Trains a tokenizer on the captions of the training source.

    Args:
      data: options `config.data`.
      max_records: maximum number of records to read.
      vocab_size: maximum vocabulary size.
      context_length: number of tokens per text.
    """
    source = sources.from_config(data)
    try:
        tokenizer = _train(tuple(_captions(source, max_records)), vocab_size, context_length)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    log.info("trained a vocabulary of %d tokens from %s", tokenizer.vocab_size, source.name)
    return tokenizer


@functools.lru_cache(maxsize=2)  # runs of one process, as those that train together, mostly have the same captions
def _train(captions: tuple[str, ...], vocab_size: int, context_length: int) -> Tokenizer:
    return Tokenizer.train(captions, vocab_size, context_length)


def _captions(source: sources.Source, max_records: int) -> Iterator[str]:
    """Yields the captions of evenly spaced records; skips broken records."""
    for index in np.unique(np.linspace(0, len(source) - 1, min(max_records, len(source))).astype(int)):
        try:
            yield from source.metadata(int(index))["captions"]
        except BrokenSample as error:
            log.warning("%s: %s", source.name, error)
