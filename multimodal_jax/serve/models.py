"""Models of the page: each is loaded at its first use and kept, with its compiled programs."""

import functools
import threading
from pathlib import Path
from typing import Any

import clip_jax
import dalle_jax
import vqgan_jax
from clip_jax.search import Index
from multimodal_jax.serve.runs import Runs
from multimodal_jax.serve.shared_models import SharedClip, SharedDalle, share

_LOADERS = {
    "clip": lambda path, dtype: share(clip_jax.load(path, dtype=dtype), SharedClip),
    "vqgan": lambda path, dtype: vqgan_jax.load(path, dtype=dtype),
    "dalle": lambda path, dtype: share(dalle_jax.load(path, dtype=dtype), SharedDalle),
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
        self._open = functools.cache(lambda kind, path: _LOADERS[kind](path, dtype))
        self._lock = threading.Lock()

    def open(self, kind: str, path: str | Path) -> Any:
        """Returns the model at a path, which is loaded once. Raises LoadError or SearchError."""
        with self._lock:
            return self._open(kind, path)
