"""Text towers alone: of a CLIP in any format, or directories of transformers' CLIPTextModelWithProjection.

Files: config.json, model.safetensors (or others of `clip_jax.pretrained.hugging_face`); the tokenizer has its own directory.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_jax.options import CLIPOptions
from clip_jax.pretrained import halves, hugging_face
from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.text import TextTower
from train_jax.compute import TransformerCompute
from train_jax.data.text import AnyTokenizer
from train_jax.errors import ConfigError, LoadError
from train_jax.weights.layout import from_peer

_PREFIX = "text/"  # of the tower's parameters in those of a CLIP


@dataclasses.dataclass(frozen=True)
class TextCheckpoint:
    """Opened checkpoint of a text tower whose weights are not read yet.

    Attributes:
      name: source, for messages.
      options: options of the CLIP, of which those of the image tower have no meaning.
      tokenizer: tokenizer of the texts.
      read: function that reads the weights as float32 arrays by unrolled names (see `train_jax.weights.layout`).
    """

    name: str
    options: CLIPOptions
    tokenizer: AnyTokenizer
    read: Callable[[], dict[str, np.ndarray]]

    def module(self, compute: TransformerCompute) -> TextTower:
        """Builds the Flax module."""
        return TextTower(self.options, self.tokenizer.eos_id, compute, 0.0)


def from_clip(checkpoint: Checkpoint) -> TextCheckpoint:
    """Opens the text tower of a CLIP."""

    def read() -> dict[str, np.ndarray]:
        arrays, _ = checkpoint.read()
        return {name.removeprefix(_PREFIX): x for name, x in arrays.items() if name.startswith(_PREFIX)}

    return TextCheckpoint(checkpoint.name, checkpoint.module().options, checkpoint.tokenizer, read)


def open_directory(path: Path, tokenizer: Path) -> TextCheckpoint:
    """Opens a directory of a CLIPTextModelWithProjection, with the directory of its tokenizer.

    Raises LoadError for other models, and if weights or tokenizer are missing or do not fit.
    """
    file, config = path / "config.json", halves.read_config(path, "text")
    try:
        model = hugging_face.convert_text_model_options(config, file)
        options = CLIPOptions.parse(model, "model")
    except (ConfigError, TypeError, ValueError, ZeroDivisionError) as error:
        raise LoadError(f"{file}: invalid configuration ({error})") from error
    tensors = hugging_face.open_weights(path)
    table = hugging_face.list_clip_text_entries(model)

    def read() -> dict[str, np.ndarray]:
        arrays = from_peer(tensors, table, str(path), hugging_face.IGNORED)
        return {name.removeprefix(_PREFIX): x for name, x in arrays.items()}

    return TextCheckpoint(str(path), options, hugging_face.open_matching_tokenizer(tokenizer, config, model), read)
