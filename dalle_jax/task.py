"""Training task of DALL-E on captions and the codes of a frozen VQGAN; see `vqgan_jax.stage2.task`.

The run directory contains the tokenizer of the captions, `tokenizer.json`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dalle_jax import card, evaluators, pretrained
from dalle_jax.captions import TOKENIZER, parse_captions
from dalle_jax.features import FeatureCaptions
from dalle_jax.options import DALLEOptions
from train_jax.data.captions import CaptionChoice
from train_jax.data.options import TokenizerOptions
from train_jax.data.text import Tokenizer
from train_jax.data.vocabulary import train_tokenizer
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.placeholders import write_tokenizer
from train_jax.task import Task
from vqgan_jax.stage2 import task
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.vqgan import Vqgan


@dataclasses.dataclass(frozen=True)
class DALLETokenizerOptions(TokenizerOptions):
    """Options of the tokenizer of captions."""

    vocab_size: int = option(16384, "vocabulary size of a tokenizer that is trained", least=2)
    dropout: float = option(0.0, "fraction of BPE merges dropped during training; 0.1 in the paper", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """Weights of the cross-entropy of text tokens and of codes."""

    condition: float = option(1 / 8, "weight of the mean cross-entropy of text tokens", least=0)
    codes: float = option(7 / 8, "weight of the mean cross-entropy of codes", least=0)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(self.condition + self.codes > 0, path, "codes", f"positive where {path}.condition is 0")


@dataclasses.dataclass(frozen=True)
class DALLETaskOptions(task.Stage2TaskOptions):
    """Options of the DALL-E task."""

    model: DALLEOptions = DALLEOptions()
    tokenizer: DALLETokenizerOptions = DALLETokenizerOptions()
    loss: LossOptions = LossOptions()
    features: str = option("", "folder of T5 features of captions, ID.npy for each record, for weights that read these")

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return super().identity() | {"tokenizer": self.tokenizer.identity()}


_FINETUNE = "dalle/finetune"  # the shipped config that starts from a checkpoint

OPTIONS, EVALUATORS, PROGRAMS, CARD = DALLETaskOptions, evaluators.EVALUATORS, task.PROGRAMS, card.DALLE
open_weights = pretrained.open_checkpoint


def complete(config: ConfigDict, stated: ConfigDict) -> None:
    """Completes a config from the DALL-E `config.pretrained`. Raises ConfigError for options that contradict it."""
    if config.pretrained:
        checkpoint = _open_pretrained(config)
        task.adopt_checkpoint(config, stated, checkpoint, checkpoint.options.to_dict(), _FINETUNE)
        if set(stated.get("tokenizer", {})) - {"dropout"}:
            raise ConfigError(
                "config.tokenizer with config.pretrained: the tokenizer comes with the checkpoint; leave it out. A config "
                f"that leaves it to the checkpoint is --config={_FINETUNE}"
            )


def _open_pretrained(config: ConfigDict) -> Stage2Checkpoint:
    return pretrained.open_checkpoint(config.pretrained, vqgan=config.vqgan.path or None)


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Makes the task of a resolved config.

    Raises ConfigError if the options are invalid, and LoadError if the VQGAN cannot be loaded.
    """
    vq, options, captions = open_parts(config, workdir)
    functions = {"open_pretrained": _open_pretrained, "more_evaluators": evaluators.make_factories}
    return task.make(config, workdir, vq, options, captions, artifacts={TOKENIZER: captions.to_json()}, **functions)


def make_evaluation(config: ConfigDict, checkpoint: Stage2Checkpoint) -> Task:
    """Makes a task that evaluates public weights; see `train_jax.task`."""
    return task.make_evaluation(config, checkpoint, evaluators.make_factories)


def open_parts(config: ConfigDict, workdir: Path | None) -> tuple[Vqgan, DALLEOptions, Condition]:
    """Opens the first stage, the options of the transformer, and the condition of a resolved config."""
    options = DALLEOptions.parse(config.model, "model")
    start = task.open_start(config, workdir, _open_pretrained)
    vq = task.open_vqgan(config, workdir, start)  # first: a wrong path fails before minutes of tokenizer training
    if start is not None:
        text = start.condition.to_json()
    elif workdir is not None and (workdir / TOKENIZER).is_file():
        text = (workdir / TOKENIZER).read_text("utf-8")
    else:
        text = _open_tokenizer(config).to_json()
    choose = CaptionChoice(config.data.leading_prob, config.data.leading_captions)
    try:
        captions = parse_captions(
            text, options.text_length, config.condition_dropout > 0, config.tokenizer.dropout, choose
        )
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    if isinstance(captions, FeatureCaptions) != bool(config.features):
        needs = "a folder: the model reads features" if not config.features else "empty: the model reads texts"
        raise ConfigError(f"config.features = {config.features!r}; it must be {needs}")
    if config.features:
        captions = dataclasses.replace(captions, folder=str(config.features))
    return vq, options, captions


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a missing tokenizer and a VQGAN that is named by its config; see `train_jax.task`."""
    if config.pretrained:
        return task.write_placeholders(config, folder, _open_pretrained(config))
    if not (config.tokenizer.path and Path(config.tokenizer.path).exists()):
        write_tokenizer(folder / TOKENIZER, config.tokenizer.vocab_size)
    return task.write_placeholders(config, folder)


def _open_tokenizer(config: ConfigDict) -> Tokenizer:
    length = config.model.text_length
    if config.tokenizer.path:
        try:
            return Tokenizer.load(config.tokenizer.path, length)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config.tokenizer.path = {config.tokenizer.path!r}: {error}. Set a folder that contains one, or train one "
                "on the captions: --config.tokenizer.path="
            ) from error
    return train_tokenizer(config.data, config.tokenizer.captions, config.tokenizer.vocab_size, length)
