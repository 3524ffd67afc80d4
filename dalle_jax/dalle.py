"""DALL-E for inference: samples, completes and scores images."""

from pathlib import Path

from dalle_jax.pretrained import open_checkpoint
from train_jax.errors import LoadError
from vqgan_jax.stage2.generator import CodeGenerator, Drawing

__all__ = ["Dalle", "Drawing", "LoadError", "load"]


class Dalle(CodeGenerator):
    """DALL-E model whose conditions are prompts. Use `load` to open a checkpoint."""


def load(
    path: str | Path, step: int | None = None, *, dtype: str | None = "auto", vqgan: str | Path | None = None
) -> Dalle:
    """Loads the DALL-E stored at `path`, with its tokenizer and its VQGAN.

    Args:
      path: a run directory of `train-jax` (averaged weights, if it has any), a directory of minDALL-E or dalle-mini, or
        "hf:org/name" for a repository of such a directory.
      step: training step of the checkpoint in a run directory; None: the newest readable checkpoint.
      dtype: precision of both stages, "float32" or "bfloat16"; "auto": bfloat16 on accelerators that have it, float32 on a
        CPU; None: that of the training. In bfloat16, weights and caches need half the memory; logits are float32 sums.
      vqgan: VQGAN of weights that come without one, as dalle-mini's do, in a format of `vqgan_jax.load`; None: the folder
        `vqgan` in `path`.

    Raises LoadError if the files are of an unknown format, damaged or inconsistent.
    """
    return open_checkpoint(path, step, vqgan).load(Dalle, dtype)
