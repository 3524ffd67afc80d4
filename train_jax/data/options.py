"""Options of image preprocessing, augmentation and tokenizers."""

import dataclasses

from train_jax.data.images import INTERPOLATIONS, MODES
from train_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class PreprocessOptions(Options):
    """Image preprocessing; see `train_jax.data.images.Preprocess`."""

    mode: str = option("crop", "center crop, or squash of both sides", choices=MODES)
    interpolation: str = option("bicubic", "interpolation method of resizing", choices=INTERPOLATIONS)


@dataclasses.dataclass(frozen=True)
class AugmentOptions(Options):
    """Augmentation of training images; see `train_jax.data.images.Augment`."""

    scale: tuple[float, ...] = option(
        (1.0, 1.0), "area range of random resized crops as shares of the image area; (1, 1): no crop", above=0, most=1
    )
    flip: bool = option(False, "random horizontal flip; may make captions such as 'left of' false")

    def check(self, path: str) -> None:
        is_range = len(self.scale) == 2 and self.scale[0] <= self.scale[1]
        self.require(is_range, path, "scale", "two shares of the area, 0 < from <= to <= 1")

    @property
    def is_identity(self) -> bool:
        """Whether the options disable all augmentation."""
        return tuple(self.scale) == (1.0, 1.0) and not self.flip


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(Options):
    """Options of the tokenizer of captions."""

    path: str = option("", "tokenizer file, or folder with one; empty: train a tokenizer on the captions")
    vocab_size: int = option(8192, "vocabulary size of a trained tokenizer", least=2)
    captions: int = option(100_000, "number of records whose captions train a tokenizer", least=1)
