"""DALL-E as a task: captions and the codes of a frozen VQGAN; see `vqgan_jax.stage2.task`.

The run directory keeps the tokenizer of captions in `tokenizer.json`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dalle_jax import evaluators
from dalle_jax.captions import Captions
from train_jax.data.text import Tokenizer
from train_jax.data.vocabulary import learn
from train_jax.errors import ConfigError
from train_jax.task import Task
from vqgan_jax.stage2 import task

TOKENIZER = "tokenizer.json"  # beside the weights


def defaults() -> ConfigDict:
    """DALL-E's part of a config."""
    c = task.defaults()
    c.tokenizer = ConfigDict()
    c.tokenizer.path = ""  # a folder with CLIP's kind of tokenizer, or its file; "": train one on the captions
    c.tokenizer.vocab_size = 16384  # of a trained one
    c.tokenizer.captions = 100_000  # records whose captions a trained one is learnt from
    c.tokenizer.dropout = 0.0  # share of merges left out in training; 0.1 in the paper
    c.model.text_length = 64  # tokens of a caption, marks and pads included
    c.model.positions = "axial"
    c.loss = ConfigDict({"condition": 1 / 8, "codes": 7 / 8})  # weights of the two means, per token
    c.evaluators.update(evaluators.defaults())
    return c


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config. ConfigError for options that cannot be, LoadError for a VQGAN that cannot."""
    _check(config)
    tokenizer = _tokenizer(config, workdir)
    captions = Captions(tokenizer, config.condition_dropout > 0, config.tokenizer.dropout)
    artifacts = {TOKENIZER: tokenizer.to_json()}
    return task.make(config, workdir, captions, artifacts=artifacts, more_evaluators=evaluators.factories)


def _check(config: ConfigDict) -> None:
    def require(holds: bool, path: str, value, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"config.{path} = {value!r}; it must be {allowed}")

    require(config.model.text_length >= 2, "model.text_length", config.model.text_length, "at least 2")
    require(0 <= config.tokenizer.dropout < 1, "tokenizer.dropout", config.tokenizer.dropout, "in [0, 1)")
    for name, weight in config.loss.items():
        require(weight >= 0, f"loss.{name}", weight, "0 or more")
    total = config.loss.condition + config.loss.codes
    require(total > 0, "loss.codes", config.loss.codes, "positive where loss.condition is 0")


def _tokenizer(config: ConfigDict, workdir: Path | None) -> Tokenizer:
    length = config.model.text_length
    if workdir is not None and (workdir / TOKENIZER).is_file():
        return Tokenizer.load(workdir / TOKENIZER, length)
    if config.tokenizer.path:
        try:
            return Tokenizer.load(config.tokenizer.path, length)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config.tokenizer.path = {config.tokenizer.path!r}: {error}. Name a folder that holds one, or learn one "
                "from the captions: --config.tokenizer.path="
            ) from error
    return learn(config.data, config.tokenizer.captions, config.tokenizer.vocab_size, length)
