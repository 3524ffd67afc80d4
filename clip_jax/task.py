"""Training task of CLIP: initialisation, loss, examples, evaluators.

Batches: `image` uint8 [B, size, size, 3], or what `Preprocess.pack` makes of images of native aspect ratio; `text` int32
[B, length], `truncated` bool [B]; with `contrastive.negatives`, `negative` int32 [B, length].
"""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from clip_jax import card, evaluators, flops, model, pretrained, ring_loss
from clip_jax import loss as dense
from clip_jax.example import PairExample, make_preprocess
from clip_jax.loss import group_captions
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.towers import TOWERS, Towers
from train_jax.config import adopt
from train_jax.data.captions import CaptionChoice
from train_jax.data.images import CLIP_MEAN, CLIP_STD, MODES, NATIVE
from train_jax.data.options import AugmentOptions, PreprocessOptions, TokenizerOptions
from train_jax.data.sentencepiece import SentencePiece
from train_jax.data.text import AnyTokenizer, Tokenizer, open_tokenizer
from train_jax.data.vocabulary import train_tokenizer
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.placeholders import make_record, write_tokenizer
from train_jax.task import Task

log = logging.getLogger(__name__)

_PUBLIC_BPE = "openai/clip-vit-base-patch32 tokenizer.json"
_PUBLIC_SENTENCEPIECE = "google/siglip-base-patch16-224 spiece.model"
_FINETUNE = "clip/finetune"  # the shipped config that starts from a checkpoint


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions(Options):
    """Options of the contrastive loss: `config.contrastive`."""

    loss: str = option("", "contrastive loss, a name in clip_jax.loss.LOSSES; empty: the value of model.loss")
    # The softmax loss is the same with both choices (see docs/design.md); the sigmoid loss and the accuracies differ.
    duplicates: str = option(
        "positive",
        "role of images with equal captions in a batch: positives or negatives of each other's captions",
        choices=("positive", "negative"),
    )
    negatives: float = option(
        0.0,
        "weight of the loss of choosing a record's caption over its hard negative, in the field `negatives`, which "
        "shapes/SIZE has; 0: none",
        least=0,
    )
    tile: int = option(0, "maximum number of logit columns computed at a time; 0: all", least=0)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(self.loss in ("", *dense.LOSSES), path, "loss", f"empty, or one of {', '.join(dense.LOSSES)}")
        has_tiles = self.loss in ("", *ring_loss.LOSSES)
        self.require(not self.tile or has_tiles, path, "tile", f"0 with loss = {self.loss!r}, which has no tiled form")


@dataclasses.dataclass(frozen=True)
class NormalizeOptions(PreprocessOptions):
    """Options of image preprocessing: resizing, and normalisation by mean and standard deviation."""

    added = ("max_patches",)

    mode: str = option(
        "crop", "center crop, squash of both sides, or native aspect ratio in whole patches", choices=(*MODES, NATIVE)
    )
    max_patches: int = option(
        0, "largest number of patches of an image with mode = 'native'; 0: that of a square of model.image.size", least=0
    )
    mean: tuple[float, ...] = option(CLIP_MEAN, "mean of each channel, for pixels in [0, 1]")
    std: tuple[float, ...] = option(CLIP_STD, "standard deviation of each channel, for pixels in [0, 1]", above=0)


@dataclasses.dataclass(frozen=True)
class CLIPTaskOptions(Options):
    """Options of a CLIP run, in addition to the options of the trainer."""

    pretrained: str = option("", "path of a checkpoint to fine-tune, in a format of clip_jax.load")
    model: CLIPOptions = CLIPOptions()
    compute: CLIPCompute = CLIPCompute()
    contrastive: ContrastiveOptions = ContrastiveOptions()
    dropout: float = option(0.0, "dropout rate in the towers' blocks", least=0, below=1)
    patch_dropout: float = option(0.0, "fraction of patches dropped in training (arXiv 2212.00794)", least=0, below=1)
    tokenizer: TokenizerOptions = TokenizerOptions()  # CLIP's BPE; with text.causal = False, SigLIP's SentencePiece
    preprocess: NormalizeOptions = NormalizeOptions()
    augment: AugmentOptions = AugmentOptions()

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return {name: getattr(self, name).identity() for name in ("model", "tokenizer", "preprocess")}

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        if self.model.image.tower != "vit":
            self.require(self.patch_dropout == 0, path, "patch_dropout", f"0: a {self.model.image.tower} drops no patches")
        if self.preprocess.mode == NATIVE:
            self.require(self.model.image.native, path, "model.image.native", f"True with preprocess.mode = {NATIVE!r}")
            self.require(self.patch_dropout == 0, path, "patch_dropout", f"0 with preprocess.mode = {NATIVE!r}")
        else:
            self.require(not self.preprocess.max_patches, path, "preprocess.max_patches", f"0 without mode = {NATIVE!r}")
        if self.model.image.has_batch_norms:
            name = "a resnet" if self.model.image.tower == "resnet" else "the stem hmlp"
            self.require(
                self.compute.micro_batch == 0,
                path,
                "compute.micro_batch",
                f"0 with {name}: batch norm takes its statistics from the whole batch",
            )
        may_flip = not (self.augment.flip and self.contrastive.negatives)
        self.require(may_flip, path, "augment.flip", "False with contrastive.negatives: 'left of' would become 'right of'")
        text = self.model.text
        reads_all = not text.causal or text.pool in ("cls", "mean")
        self.require(
            not (reads_all and self.compute.text_lengths),
            path,
            "compute.text_lengths",
            "empty: this text tower attends to padding",
        )


OPTIONS, EVALUATORS, CARD = CLIPTaskOptions, evaluators.EVALUATORS, card.CLIP
PROGRAMS = {"encode": "clip_jax.plan", "paint": "vqgan_jax.guided.plan"}


def complete(config: ConfigDict, stated: ConfigDict) -> None:
    """Fills in the model and preprocessing options of a config from the checkpoint `config.pretrained`.

    Raises ConfigError if options set by the user contradict the checkpoint.
    """
    if not config.pretrained:
        return
    checkpoint = pretrained.open_checkpoint(config.pretrained)
    architecture = CLIPOptions.parse(checkpoint.model, "model").identity()
    adopt(config.model, stated.get("model", {}), architecture, "model", free=("image.size",), example=_FINETUNE)
    fields = dataclasses.asdict(checkpoint.preprocess)
    fields = {name: value for name, value in fields.items() if name not in ("size", "patch")}
    adopt(config.preprocess, stated.get("preprocess", {}), fields, "preprocess", ("max_patches",), example=_FINETUNE)
    if config.tokenizer != TokenizerOptions.defaults():
        raise ConfigError(
            "config.tokenizer with config.pretrained: the tokenizer comes with the checkpoint; leave it out. A config that "
            f"leaves it to the checkpoint is --config={_FINETUNE}"
        )


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Makes the task of a resolved config. Reuses the tokenizer of an existing run directory."""
    if config.accumulate > 1:
        raise ConfigError(
            f"config.accumulate = {config.accumulate}: a contrastive loss compares all examples of a batch, but "
            "accumulation would compare only those of a micro-batch. Set config.compute.micro_batch instead: the towers "
            "encode at most so many examples per device at a time, and the loss compares all of them"
        )
    compute = CLIPCompute.parse(config.compute, "compute")
    contrastive = ContrastiveOptions.parse(config.contrastive, "contrastive")
    tokenizer = _open_tokenizer(config, workdir)
    if config.model.text.pad_id not in (-1, tokenizer.pad_id):
        raise ConfigError(
            f"config.model.text.pad_id = {config.model.text.pad_id}; allowed are {tokenizer.pad_id}, with which the "
            "tokenizer pads, and -1: padding is attended to"
        )
    size = config.model.image.size
    preprocess = make_preprocess(config.model, config.preprocess)
    module = model.build(
        config.model, tokenizer.vocab_size, tokenizer.eos_id, compute, config.dropout, config.patch_dropout
    )
    frozen = tuple(tower for tower in TOWERS if _is_frozen(config, tower))
    towers = Towers(module, preprocess, compute, tokenizer.eos_id, frozen)
    augment = AugmentOptions.parse(config.augment, "augment").make(preprocess)
    choose = CaptionChoice(config.data.leading_prob, config.data.leading_captions)

    def init(rng, batch):
        text = jnp.zeros((1, tokenizer.context_length), jnp.int32)
        variables = module.init(rng, jnp.zeros((1, size, size, 3)), text)
        return {"clip": variables.pop("params")}, variables

    def loss(params, mutable_variables, batch, rng, step):
        keys = jax.random.split(rng)
        variables = {"params": params["clip"], **mutable_variables}
        image_features, updated_variables = towers.encode_images(variables, batch["image"], keys[0])
        text_features = towers.encode_texts(variables, batch["text"], keys[1])
        scale, bias = module.apply({"params": params["clip"]}, method="scale_and_bias")
        value, metrics = _contrastive_loss(
            module.options.loss, contrastive, image_features, text_features, scale, bias, batch["text"]
        )
        if contrastive.negatives:
            negative_features = towers.encode_texts(variables, batch["negative"], keys[1])
            has_negative = jnp.any(batch["text"] != batch["negative"], axis=1)
            negatives_loss, accuracy = dense.negatives_loss(
                image_features, text_features, negative_features, scale, has_negative
            )
            value += contrastive.negatives * negatives_loss
            metrics = metrics | {"negatives": negatives_loss, "accuracy/negatives": accuracy}
        truncated = jnp.mean(batch["truncated"].astype(jnp.float32))
        return value, (metrics | {"logit_scale": scale, "truncated": truncated}, updated_variables)

    def weights():
        variables, name = pretrained.open_checkpoint(config.pretrained).variables(module)
        log.info("starting from %s", name)
        return {"clip": variables.pop("params")}, variables

    return Task(
        init=init,
        loss=loss,
        example=PairExample(augment, tokenizer, choose, contrastive.negatives > 0),
        evaluators=evaluators.make_factories(
            module.clone(compute=dataclasses.replace(compute, float8=False)), tokenizer, preprocess
        ),
        artifacts={"tokenizer.json": tokenizer.to_json(), "preprocess.json": preprocess.to_json()},
        pretrained=weights if config.pretrained else None,
        flops=flops.training_flops(
            module.options, config.patch_dropout, 1 + (contrastive.negatives > 0), frozen, preprocess.max_patches
        ),
    )


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a missing tokenizer by a placeholder in `folder`; see `train_jax.task`."""
    path = config.tokenizer.path
    if not config.pretrained and not (path and Path(path).exists()):
        write_tokenizer(folder / "tokenizer.json", min(600, config.model.text.vocab_size or config.tokenizer.vocab_size))
        config.model.text.vocab_size = config.model.text.vocab_size or config.tokenizer.vocab_size
    return config, make_record(negatives=["not a placeholder"])


def _is_frozen(config: ConfigDict, tower: str) -> bool:
    """Checks whether a pattern of `config.optim.freeze` freezes a whole tower (as in LiT, arXiv 2111.07991)."""
    return any(re.search(pattern, f"clip/{tower}/") for pattern in config.optim.freeze)


def _contrastive_loss(logits_for: str, options: ContrastiveOptions, images, texts, scale, bias, ids):
    """Computes the contrastive loss and the metrics of the embeddings of a global batch."""
    group = group_captions(ids) if options.duplicates == "positive" else jnp.arange(len(ids))
    losses, tile_options = (ring_loss, {"tile": options.tile}) if options.tile else (dense, {})
    value, metrics = losses.LOSSES[options.loss or logits_for](images, texts, scale, bias, group, **tile_options)
    return value, metrics | ({"logit_bias": bias} if logits_for == "sigmoid" else {})


def _open_tokenizer(config: ConfigDict, workdir: Path | None) -> AnyTokenizer:
    """Opens the tokenizer of the run, the checkpoint or `config.tokenizer.path`, or trains one on the captions."""
    length = config.model.text.context_length
    if workdir is not None and (workdir / "tokenizer.json").is_file():
        return open_tokenizer(workdir / "tokenizer.json", length)
    if config.pretrained:
        return pretrained.open_checkpoint(config.pretrained).tokenizer
    if config.tokenizer.path:
        is_bpe = config.model.text.causal
        try:
            return (Tokenizer if is_bpe else SentencePiece).load(config.tokenizer.path, length)
        except (OSError, ValueError) as error:
            files = _PUBLIC_BPE if is_bpe else _PUBLIC_SENTENCEPIECE
            raise ConfigError(
                f"config.tokenizer.path = {config.tokenizer.path!r}: {error}. `hf download {files} --local-dir "
                f"{config.tokenizer.path}` downloads it; --config.tokenizer.path= trains one on the captions"
            ) from error
    return train_tokenizer(config.data, config.tokenizer.captions, config.tokenizer.vocab_size, length)
