"""The loaded DALL-E: samples images of prompts, completes images, and scores them."""

from pathlib import Path

from dalle_jax.pretrained import open_checkpoint
from train_jax.errors import LoadError
from vqgan_jax.stage2.generator import CodeGenerator, Drawing

__all__ = ["Dalle", "Drawing", "LoadError", "load"]


class Dalle(CodeGenerator):
    """A second stage whose conditions are prompts. Make one with `load`."""


def load(path: str | Path, step: int | None = None) -> Dalle:
    """Loads the DALL-E at `path`, with its tokenizer and its VQGAN.

    Args:
      path: a run directory (averaged weights where there are any), a directory of minDALL-E, or "hf:org/name" for a
        repository that holds its files.
      step: of a run directory, the checkpoint; None for the newest readable one.

    Raises LoadError for any other file, for damaged files, and for weights that do not fit their configuration.
    """
    return open_checkpoint(path, step).load(Dalle)
