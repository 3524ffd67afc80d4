"""The loaded DALL-E: a small value that draws pictures of prompts, completes pictures, and tells how likely they are."""

from pathlib import Path

from dalle_jax.pretrained import open_checkpoint
from train_jax.errors import LoadError
from vqgan_jax.stage2.generator import CodeGenerator, Drawing

__all__ = ["Dalle", "Drawing", "LoadError", "load"]


class Dalle(CodeGenerator):
    """A second stage whose conditions are prompts. Make one with `load`."""


def load(path: str | Path, step: int | None = None) -> Dalle:
    """The model that `path` holds, with its tokenizer and its VQGAN.

    Args:
      path: a run directory (averaged weights where there are any), a directory of minDALL-E, or "hf:org/name" for a
        repository that holds its files.
      step: of a run directory, the checkpoint; None for the newest readable one.

    Raises LoadError that says what was found if it is none of these, is damaged, or does not belong together.
    """
    return open_checkpoint(path, step).load(Dalle)
