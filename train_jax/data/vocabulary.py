"""A tokenizer trained on the captions of a training set."""

import logging
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from train_jax.data import sources
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError

log = logging.getLogger(__name__)


def learn(data: ConfigDict, max_records: int, vocab_size: int, context_length: int) -> Tokenizer:
    """Trains a tokenizer of at most `vocab_size` tokens on the captions of `max_records` records of `config.data`'s
    source.
    """
    source = sources.from_config(data)
    try:
        tokenizer = Tokenizer.train(_captions(source, max_records), vocab_size, context_length)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    log.info("learnt a vocabulary of %d tokens from %s", tokenizer.vocab_size, source.name)
    return tokenizer


def _captions(source: sources.Source, max_records: int) -> Iterator[str]:
    """Yields the captions of evenly spread records; skips those that cannot be read."""
    for index in np.unique(np.linspace(0, len(source) - 1, min(max_records, len(source))).astype(int)):
        try:
            yield from source.described(int(index))["captions"]
        except BrokenSample as error:
            log.warning("%s: %s", source.name, error)
