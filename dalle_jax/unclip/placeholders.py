"""Placeholder for the CLIP of a config of unCLIP (see `train_jax.placeholders`)."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clip_jax import clip as clip_lib
from clip_jax.example import make_preprocess
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.pretrained import single_file
from dalle_jax.unclip.frozen_clip import CLIP
from train_jax import config as config_lib
from train_jax import config_file
from train_jax.data.text import Tokenizer
from train_jax.placeholders import make_record, write_tokenizer

_TOKENS = 600  # of the tokenizer; the model keeps its vocabulary


def write_clip(config: ConfigDict, folder: Path) -> CLIPOptions:
    """Writes the CLIP of a task's config into a run directory, and returns its options.

    `config.clip.path` names a model, or the shipped config of one, such as "clip/vit_l14": then the file has no weights,
    which no tracing needs. Raises ConfigError for any other path.
    """
    shipped = config_file.find_placeholder(config.clip.path, "clip_jax.task", "config.clip.path")
    if shipped is None:
        clip = clip_lib.load(config.clip.path, dtype=None)
        (folder / CLIP).write_bytes(clip_lib.to_bytes(clip))
        return clip.module.options
    shipped = config_lib.resolve(shipped)
    vocab_size = shipped.model.text.vocab_size or shipped.tokenizer.vocab_size
    shipped.model.text.vocab_size = vocab_size
    options, compute = CLIPOptions.parse(shipped.model, "model"), CLIPCompute.parse(shipped.compute, "compute")
    file = write_tokenizer(folder / "tokenizer.json", min(_TOKENS, vocab_size))
    tokenizer = Tokenizer.load(file, options.text.context_length)
    preprocess = make_preprocess(shipped.model, shipped.preprocess)
    (folder / CLIP).write_bytes(single_file.to_bytes(options, compute, tokenizer, preprocess, {"params": {}}))
    return options


def make_embedding_record(clip: CLIPOptions) -> dict[str, Any]:
    """Makes a record with the embedding of its image."""
    return make_record(embedding=np.zeros(clip.embed_dim, np.float32))
