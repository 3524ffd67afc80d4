"""DALL-E checkpoints in run directories of `train-jax`."""

from pathlib import Path

from dalle_jax.captions import TOKENIZER, Captions
from dalle_jax.options import DALLEOptions
from train_jax.data.text import Tokenizer
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint, open_run


def open_directory(path: Path, step: int | None = None) -> Stage2Checkpoint | None:
    """Opens a checkpoint of a run directory, by default the newest. Returns None if `path` is not a run directory.

    Uses averaged weights if the checkpoint has any.
    """

    def condition(config: dict, options: DALLEOptions) -> Captions:
        tokenizer = Tokenizer.load(path / TOKENIZER, options.text_length)
        return Captions(tokenizer, droppable=config["condition_dropout"] > 0)

    names = {"task": "dalle_jax.task", "what": "a DALL-E", "artifacts": (TOKENIZER,)}
    return open_run(path, step, **names, options=DALLEOptions, condition=condition)
