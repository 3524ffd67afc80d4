"""CLIP as a task: how it is initialised, what its loss is, how a record becomes arrays, what is evaluated.

Batches: `image` uint8 [B, size, size, 3], `text` int32 [B, length], `truncated` bool [B].
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from clip_jax import evaluators, model
from clip_jax.loss import same_caption, sigmoid_loss, softmax_loss
from train_jax.data import images, sources
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError
from train_jax.profiling import BACKWARD, conv_flops, dense_flops, transformer_flops
from train_jax.task import Task

log = logging.getLogger(__name__)


def defaults() -> ConfigDict:
    """CLIP's part of a config."""
    c = ConfigDict()
    c.model = model.defaults()
    c.tokenizer = ConfigDict()
    c.tokenizer.path = ""  # a tokenizer.json, or a folder with one; "": train one on the captions of data.source
    c.tokenizer.vocab_size = 8192  # of a trained one
    c.tokenizer.captions = 100_000  # records whose captions a trained one is learnt from
    c.preprocess = ConfigDict(
        {"mode": "crop", "interpolation": "bicubic", "mean": images.CLIP_MEAN, "std": images.CLIP_STD}
    )
    c.augment = ConfigDict()
    c.augment.scale = (1.0, 1.0)  # share of the picture's area in a random resized crop; (1, 1): none
    c.augment.flip = False  # left to right, half of the time; it makes "left of" untrue
    c.evaluators = evaluators.defaults()
    return c


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config; a run directory's own tokenizer is used again."""
    tokenizer = _tokenizer(config, workdir)
    size = config.model.image.size
    preprocess = images.Preprocess(size=size, **config.preprocess)
    module = model.build(config.model, tokenizer.vocab_size, tokenizer.eos_id)
    scale = tuple(config.augment.scale)
    if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise ConfigError(f"config.augment.scale = {scale}; it must be two shares of the area, 0 < from <= to <= 1")

    def init(rng, batch):
        pixels = jnp.zeros((1, size, size, 3))
        return {"clip": module.init(rng, pixels, batch["text"][:1])["params"]}, {}

    def loss(params, extra, batch, rng, step):
        pixels = images.normalize(batch["image"], preprocess.mean, preprocess.std)
        image, text, scale, bias = module.apply(
            {"params": params["clip"]},
            pixels,
            batch["text"],
            deterministic=config.model.dropout == 0,
            rngs={"dropout": rng},
        )
        if config.model.duplicates == "positive":
            positive = same_caption(batch["text"])
        else:
            positive = jnp.eye(image.shape[0], dtype=bool)
        if config.model.loss == "softmax":
            value, metrics = softmax_loss(image, text, scale, positive)
        else:
            value, metrics = sigmoid_loss(image, text, scale, bias, positive)
            metrics["logit_bias"] = bias
        truncated = jnp.mean(batch["truncated"].astype(jnp.float32))
        return value, (metrics | {"logit_scale": scale, "truncated": truncated}, extra)

    def example(record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record["captions"][rng.integers(len(record["captions"]))]
        picture = images.decode(record["image"])
        if scale != (1.0, 1.0):
            picture = images.random_resized_crop(
                picture, size, rng, scale=scale, interpolation=preprocess.interpolation
            )
        pixels = preprocess(picture)
        if config.augment.flip and rng.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        ids, truncated = tokenizer.encode_flagged([caption])
        return {"image": pixels, "text": ids[0], "truncated": truncated[0]}

    return Task(
        init=init,
        loss=loss,
        example=example,
        evaluators=evaluators.factories(module, tokenizer, preprocess),
        artifacts={"tokenizer.json": tokenizer.to_json(), "preprocess.json": preprocess.to_json()},
        flops=flops(config.model),
    )


def flops(m: ConfigDict) -> float:
    """Operations of the forward and backward pass of one pair: both towers, the logits left out."""
    grid = m.image.size // m.image.patch
    tokens = grid**2 + (m.image.pool == "cls")
    if m.image.stem == "conv":
        stem, side, channels = 0, m.image.size, 3
        while side > grid:
            side //= 2
            wider = m.image.width * grid // side
            stem += conv_flops(side, side, 3, channels, wider)
            channels = wider
        stem += conv_flops(grid, grid, 1, channels, m.image.width)
    else:
        stem = conv_flops(grid, grid, m.image.patch, 3, m.image.width)
    vision = stem + transformer_flops(tokens, m.image.width, m.image.depth, m.image.mlp_ratio)
    text = transformer_flops(m.text.context_length, m.text.width, m.text.depth, m.text.mlp_ratio)
    heads = dense_flops(1, m.image.width, m.embed_dim) + dense_flops(1, m.text.width, m.embed_dim)
    return float(BACKWARD * (vision + text + heads))


def _tokenizer(config: ConfigDict, workdir: Path | None) -> Tokenizer:
    length = config.model.text.context_length
    if workdir is not None and (workdir / "tokenizer.json").is_file():
        return Tokenizer.load(workdir / "tokenizer.json", length)
    if config.tokenizer.path:
        return Tokenizer.load(config.tokenizer.path, length)
    source = sources.open_source(
        config.data.source,
        config.data.split,
        data_dir=config.data.data_dir or None,
        templates=tuple(config.data.templates) or None,
    )
    tokenizer = Tokenizer.train(_captions(source, config.tokenizer.captions), config.tokenizer.vocab_size, length)
    log.info("learnt a vocabulary of %d tokens from %s", tokenizer.vocab_size, source.name)
    return tokenizer


def _captions(source: sources.Source, most: int) -> Iterator[str]:
    """The captions of evenly spread records; one that cannot be read is passed over."""
    for index in np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)):
        try:
            yield from source[int(index)]["captions"]
        except images.BrokenSample as error:
            log.warning("%s: %s", source.name, error)
