"""CLIP as a task: how it is initialised, what its loss is, how a record becomes arrays, what is evaluated.

Batches: `image` uint8 [B, size, size, 3], `text` int32 [B, length], `truncated` bool [B].
"""

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from clip_jax import evaluators, flops, model, pretrained, ring_loss
from clip_jax import loss as dense
from clip_jax.example import PairExample
from clip_jax.loss import same_caption
from train_jax import sharding
from train_jax.config import adopt
from train_jax.data import images
from train_jax.data.sentencepiece import SentencePiece
from train_jax.data.text import AnyTokenizer, Tokenizer, open_tokenizer
from train_jax.data.vocabulary import learn
from train_jax.errors import ConfigError
from train_jax.task import Task

log = logging.getLogger(__name__)

_FINETUNE = "clip/finetune"  # the shipped config that starts from a checkpoint
_METHODS = {"vision": "encode_image", "text": "encode_text"}


def defaults() -> ConfigDict:
    """CLIP's part of a config."""
    c = ConfigDict()
    c.pretrained = (
        ""  # a checkpoint to start from: anything that clip_jax.load opens; it brings its model and tokenizer
    )
    c.model = model.defaults()
    c.tokenizer = ConfigDict()
    # A folder with CLIP's tokenizer (with text.causal = False, SigLIP's), or its file; "": train one on the captions.
    c.tokenizer.path = ""
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


def complete(config: ConfigDict, stated: ConfigDict) -> None:
    """With `config.pretrained`, the model, tokenizer and preprocessing are the checkpoint's.

    Raises ConfigError where the user's own options contradict it.
    """
    if not config.pretrained:
        return
    checkpoint = pretrained.open_checkpoint(config.pretrained)
    architecture = model.architecture(checkpoint.model)
    adopt(config.model, stated.get("model", {}), architecture, "model", free=("image.size",), example=_FINETUNE)
    fields = dataclasses.asdict(checkpoint.preprocess)
    fields.pop("size")
    adopt(config.preprocess, stated.get("preprocess", {}), fields, "preprocess", example=_FINETUNE)
    if config.tokenizer != defaults().tokenizer:
        raise ConfigError(
            "config.tokenizer with config.pretrained: the tokenizer comes with the checkpoint; leave it out. A config that "
            f"leaves it to the checkpoint is --config={_FINETUNE}"
        )


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config; a run directory's own tokenizer is used again."""
    _check_accumulate(config)
    tokenizer = _tokenizer(config, workdir)
    size = config.model.image.size
    preprocess = images.Preprocess(size=size, **config.preprocess)
    module = model.build(config.model, tokenizer.vocab_size, tokenizer.eos_id)
    augment = images.Augment(preprocess, tuple(config.augment.scale), config.augment.flip)
    locked = {method for tower, method in _METHODS.items() if _is_frozen(config, tower)}

    def init(rng, batch):
        pixels = jnp.zeros((1, size, size, 3))
        variables = module.init(rng, pixels, batch["text"][:1])
        return {"clip": variables.pop("params")}, variables

    def loss(params, extra, batch, rng, step):
        def image(pixels, key):
            pixels = images.normalize(pixels, preprocess.mean, preprocess.std)
            return apply(pixels, key, "encode_image")

        def text(ids, key):
            return apply(ids, key, "encode_text")

        def apply(inputs, key, method):
            variables = {"params": params["clip"], **extra}
            if method in locked:  # as it is, without dropout and with the statistics it came with
                return jax.lax.stop_gradient(module.apply(variables, inputs, method=method)), extra
            return module.apply(variables, inputs, False, method=method, rngs={"dropout": key}, mutable=list(extra))

        keys = jax.random.split(rng)
        image_features, changed = _in_parts(image, batch["image"], keys[0], config.model.micro_batch)
        text_features, _ = _in_parts(text, batch["text"], keys[1], config.model.micro_batch)
        scale, bias = module.apply({"params": params["clip"]}, method="scale_and_bias")
        value, metrics = _contrast(config.model, image_features, text_features, scale, bias, batch["text"])
        truncated = jnp.mean(batch["truncated"].astype(jnp.float32))
        return value, (metrics | {"logit_scale": scale, "truncated": truncated}, changed)

    def weights():
        variables, name = pretrained.open_checkpoint(config.pretrained).variables(module)
        log.info("starting from %s", name)
        return {"clip": variables.pop("params")}, variables

    return Task(
        init=init,
        loss=loss,
        example=PairExample(augment, tokenizer),
        evaluators=evaluators.factories(module, tokenizer, preprocess),
        artifacts={"tokenizer.json": tokenizer.to_json(), "preprocess.json": preprocess.to_json()},
        pretrained=weights if config.pretrained else None,
        flops=flops.training(config.model),
    )


def _is_frozen(config: ConfigDict, tower: str) -> bool:
    """Whether a pattern of `config.optim.freeze` locks a whole tower (as in LiT, arXiv 2111.07991)."""
    return any(re.search(pattern, f"clip/{tower}/") for pattern in config.optim.freeze)


def _check_accumulate(config: ConfigDict) -> None:
    if config.accumulate > 1:
        raise ConfigError(
            f"config.accumulate = {config.accumulate}: a contrastive loss compares all examples of a batch, and each "
            "micro-batch would have an easier one of its own. Set config.model.micro_batch instead: the towers see at most "
            "so many examples of a device at a time, and the loss all of them"
        )


def _in_parts(encode: Callable, inputs, key, most: int):
    """`encode(inputs, key)`, at most `most` examples of a device at a time (0: all).

    The backward pass computes each part again, with its key.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = sharding.parts_of(sharding.rows_per_device(mesh, inputs.shape[0]), most) if most else 1
    if parts == 1:
        return encode(inputs, key)
    features, changed = jax.lax.map(
        lambda part: jax.checkpoint(encode)(*part),
        (sharding.split_batch(inputs, parts, mesh), jax.random.split(key, parts)),
    )
    return sharding.join_batch(features, mesh), changed


def _contrast(m: ConfigDict, images, texts, scale, bias, ids):
    """The loss that `config.model` names, and its metrics."""
    group = same_caption(ids) if m.duplicates == "positive" else jnp.arange(len(ids))
    form, options = (ring_loss, {"tile": m.tile}) if m.tile else (dense, {})
    if m.loss == "softmax":
        return form.softmax_loss(images, texts, scale, group, **options)
    value, metrics = form.sigmoid_loss(images, texts, scale, bias, group, **options)
    return value, metrics | {"logit_bias": bias}


def _tokenizer(config: ConfigDict, workdir: Path | None) -> AnyTokenizer:
    length = config.model.text.context_length
    if workdir is not None and (workdir / "tokenizer.json").is_file():
        return open_tokenizer(workdir / "tokenizer.json", length)
    if config.pretrained:
        return pretrained.open_checkpoint(config.pretrained).tokenizer
    if config.tokenizer.path:
        kind = Tokenizer if config.model.text.causal else SentencePiece
        try:
            return kind.load(config.tokenizer.path, length)
        except (OSError, ValueError) as error:
            remedy = {Tokenizer: "openai/clip-vit-base-patch32 tokenizer.json"}.get(
                kind, "google/siglip-base-patch16-224 spiece.model"
            )
            raise ConfigError(
                f"config.tokenizer.path = {config.tokenizer.path!r}: {error}. `hf download {remedy} --local-dir "
                f"{config.tokenizer.path}` puts one there; --config.tokenizer.path= learns one from the captions"
            ) from error
    return learn(config.data, config.tokenizer.captions, config.tokenizer.vocab_size, length)
