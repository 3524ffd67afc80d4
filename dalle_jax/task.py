"""Training task of DALL-E on captions and the codes of a frozen VQGAN; see `vqgan_jax.stage2.task`.

The run directory contains the tokenizer of the captions, `tokenizer.json`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dalle_jax import evaluators, pretrained
from dalle_jax.captions import TOKENIZER, Captions
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
        self.require(self.condition + self.codes > 0, path, "codes", f"positive where {path}.condition is 0")


@dataclasses.dataclass(frozen=True)
class DALLETaskOptions(task.Stage2TaskOptions):
    """Options of the DALL-E task."""

    model: DALLEOptions = DALLEOptions()
    tokenizer: DALLETokenizerOptions = DALLETokenizerOptions()
    loss: LossOptions = LossOptions()

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"tokenizer": self.tokenizer.identity()}


OPTIONS, EVALUATORS, PROGRAMS = DALLETaskOptions, evaluators.EVALUATORS, task.PROGRAMS
open_weights = pretrained.open_checkpoint


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Makes the task of a resolved config.

    Raises ConfigError if the options are invalid, and LoadError if the VQGAN cannot be loaded.
    """
    vq, options, captions = open_parts(config, workdir)
    artifacts = {TOKENIZER: captions.tokenizer.to_json()}
    return task.make(config, workdir, vq, options, captions, artifacts=artifacts, more_evaluators=evaluators.make_factories)


def make_evaluation(config: ConfigDict, checkpoint: Stage2Checkpoint) -> Task:
    """Makes a task that evaluates public weights; see `train_jax.task`."""
    return task.make_evaluation(config, checkpoint, evaluators.make_factories)


def open_parts(config: ConfigDict, workdir: Path | None) -> tuple[Vqgan, DALLEOptions, Captions]:
    """Opens the first stage, the options of the transformer, and the condition of a resolved config."""
    options = DALLEOptions.parse(config.model, "model")
    vq = task.open_vqgan(config, workdir)  # first: a wrong path fails before minutes of tokenizer training
    tokenizer = _open_tokenizer(config, workdir)
    choose = CaptionChoice(config.data.leading_prob, config.data.leading_captions)
    return vq, options, Captions(tokenizer, config.condition_dropout > 0, config.tokenizer.dropout, choose)


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a missing tokenizer and a VQGAN that is named by its config; see `train_jax.task`."""
    if not (config.tokenizer.path and Path(config.tokenizer.path).exists()):
        write_tokenizer(folder / TOKENIZER, config.tokenizer.vocab_size)
    return task.write_placeholders(config, folder)


def _open_tokenizer(config: ConfigDict, workdir: Path | None) -> Tokenizer:
    length = config.model.text_length
    if workdir is not None and (workdir / TOKENIZER).is_file():
        return Tokenizer.load(workdir / TOKENIZER, length)
    if config.tokenizer.path:
        try:
            return Tokenizer.load(config.tokenizer.path, length)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config.tokenizer.path = {config.tokenizer.path!r}: {error}. Set a folder that contains one, or train one "
                "on the captions: --config.tokenizer.path="
            ) from error
    return train_tokenizer(config.data, config.tokenizer.captions, config.tokenizer.vocab_size, length)
