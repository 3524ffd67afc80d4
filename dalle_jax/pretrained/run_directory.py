"""DALL-E checkpoints in run directories of `train-jax`."""

import dataclasses
from pathlib import Path

from dalle_jax.captions import TOKENIZER, parse_captions
from dalle_jax.features import T5, FeatureCaptions
from dalle_jax.options import DALLEOptions
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint, open_run
from vqgan_jax.stage2.condition import Condition


def open_directory(path: Path, step: int | None = None) -> Stage2Checkpoint | None:
    """Opens a checkpoint of a run directory, by default the newest. Returns None if `path` is not a run directory.

    Uses averaged weights if the checkpoint has any.
    """

    def condition(config: dict, options: DALLEOptions) -> Condition:
        text = (path / TOKENIZER).read_text("utf-8")
        captions = parse_captions(text, options.text_length, config["condition_dropout"] > 0)
        is_text = not isinstance(captions, FeatureCaptions)
        return captions if is_text else dataclasses.replace(captions, t5=str(path / T5))

    names = {"task": "dalle_jax.task", "what": "a DALL-E", "artifacts": (TOKENIZER,)}
    return open_run(path, step, **names, options=DALLEOptions, condition=condition)
