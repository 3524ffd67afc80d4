"""Models of the page: each is loaded at its first use and kept, with its compiled programs."""

import functools
from pathlib import Path
from typing import Any

import clip_jax
import dalle_jax
import vqgan_jax
from clip_jax.search import Index
from multimodal_jax.serve.runs import Runs

_LOADERS = {
    "clip": lambda path, dtype: clip_jax.load(path, dtype=dtype),
    "vqgan": lambda path, dtype: vqgan_jax.load(path, dtype=dtype),
    "dalle": lambda path, dtype: dalle_jax.load(path, dtype=dtype),
    "unclip": lambda path, dtype: dalle_jax.load_unclip(path, dtype=dtype),
    "index": lambda path, dtype: Index.open(path),
}


class Models:
    """Models of a folder of runs.

    Args:
      dtype: precision, as in `clip_jax.load`.
    """

    def __init__(self, runs: Runs, dtype: str = "auto"):
        self.runs, self.dtype = runs, dtype
        self.open = functools.cache(self._open)

    def _open(self, kind: str, path: str | Path) -> Any:
        """Returns the model at a path, which is loaded once. Raises LoadError or SearchError."""
        return _LOADERS[kind](path, self.dtype)
