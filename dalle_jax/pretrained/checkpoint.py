"""What a format's files tell of a model."""

import dataclasses
from collections.abc import Callable, Mapping

from dalle_jax.captions import AnyCaptions
from vqgan_jax.vqgan import Vqgan


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model in files.

    Attributes:
      name: for people.
      options: of `dalle_jax.model.defaults`, as far as the files tell them.
      captions: the tokenizer of its prompts.
      vqgan: the tokenizer of its pictures.
      size: side of its pictures.
      read: reads the weights: `(parameters, name with the step)`.
    """

    name: str
    options: Mapping
    captions: AnyCaptions
    vqgan: Vqgan
    size: int
    read: Callable[[], tuple[dict, str]]
