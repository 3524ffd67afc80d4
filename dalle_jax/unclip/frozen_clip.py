"""The frozen CLIP of unCLIP's training tasks, of which a run directory has a copy, `clip.safetensors`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.clip import Clip, load, to_bytes
from clip_jax.model import CLIP as CLIPModule
from clip_jax.pretrained import open_checkpoint
from clip_jax.pretrained.checkpoint import abstract_variables
from clip_jax.text import TextTower
from train_jax.data.text import AnyTokenizer
from train_jax.errors import ConfigError
from train_jax.options import Options, option

CLIP = "clip.safetensors"  # in a run directory


@dataclasses.dataclass(frozen=True)
class ClipPathOptions(Options):
    """Options of the frozen CLIP."""

    path: str = option("", "CLIP of the embeddings: anything that clip_jax.load opens")


@dataclasses.dataclass(frozen=True)
class EmbeddingsOptions(Options):
    """Options of the embeddings of the training images, which are computed once."""

    dir: str = option("", "directory of embedding files; empty: in the run directory")


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenClip:
    """A CLIP whose weights are read at their first use: to trace a task, their shapes are enough.

    Attributes:
      module: Flax module.
      content: content of the file that a run directory has of it.
      read: function that reads the model.
    """

    module: CLIPModule
    tokenizer: AnyTokenizer
    content: bytes
    read: Callable[[], Clip]

    @functools.cached_property
    def clip(self) -> Clip:
        """The model with its weights."""
        return self.read()

    @property
    def tower(self) -> TextTower:
        """Module of the text tower."""
        return text_tower(self.module)

    @property
    def text_params(self) -> Any:
        """Parameters of the text tower, as NumPy arrays."""
        return jax.tree.map(np.asarray, self.clip.variables["params"]["text"])

    @functools.cached_property
    def abstract_text_params(self) -> Any:
        """Shapes and dtypes of the parameters of the text tower."""
        return abstract_variables(self.module)["params"]["text"]

    @property
    def null_ids(self) -> np.ndarray:
        """Tokens of the empty text, int32 [length]."""
        return self.tokenizer.encode([""])[0]


def text_tower(module: CLIPModule) -> TextTower:
    """Returns the module of a CLIP's text tower."""
    return TextTower(module.options, module.eos_id, module.compute, 0.0)


def open_clip(path: str, workdir: Path | None) -> FrozenClip:
    """Opens the copy in the run directory, or for a new run the CLIP at `path`."""
    # In the precision of its training: embeddings, and the copy, must not depend on the machine that goes on.
    copy = workdir / CLIP if workdir else None
    if copy is not None and copy.is_file():
        checkpoint = open_checkpoint(copy)
        module, tokenizer = checkpoint.module(), checkpoint.tokenizer
        return FrozenClip(module, tokenizer, copy.read_bytes(), lambda: load(copy, dtype=None))
    if not path:
        raise ConfigError("config.clip.path is empty: set it to the CLIP of the embeddings, such as a run directory")
    clip = load(path, dtype=None)
    return FrozenClip(clip.module, clip.tokenizer, to_bytes(clip), lambda: clip)
