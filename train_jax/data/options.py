"""Options of image preprocessing, augmentation and tokenizers."""

import dataclasses

from train_jax.data.images import INTERPOLATIONS, MODES
from train_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class PreprocessOptions(Options):
    """Image preprocessing; see `train_jax.data.images.Preprocess`."""

    mode: str = option("crop", "crop the middle, or squash both sides", choices=MODES)
    interpolation: str = option("bicubic", "of the resizing", choices=INTERPOLATIONS)


@dataclasses.dataclass(frozen=True)
class AugmentOptions(Options):
    """Augmentation of training images; see `train_jax.data.images.Augment`."""

    scale: tuple[float, ...] = option(
        (1.0, 1.0), "share of the picture's area in a random resized crop; (1, 1): none", above=0, most=1
    )
    flip: bool = option(False, "left to right, half of the time; it makes 'left of' untrue")

    def check(self, path: str) -> None:
        fits = len(self.scale) == 2 and self.scale[0] <= self.scale[1]
        self.require(fits, path, "scale", "two shares of the area, 0 < from <= to <= 1")

    @property
    def is_identity(self) -> bool:
        """Whether training images are not augmented."""
        return tuple(self.scale) == (1.0, 1.0) and not self.flip


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(Options):
    """The tokenizer of captions."""

    path: str = option("", "a folder with a tokenizer, or its file; empty: one is trained on the captions")
    vocab_size: int = option(8192, "tokens of a trained one", least=2)
    captions: int = option(100_000, "records whose captions a trained one is learnt from", least=1)
