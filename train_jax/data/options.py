"""Options of image preprocessing, augmentation and tokenizers."""

import dataclasses

from train_jax.data.color_jitter import ColorJitter
from train_jax.data.images import INTERPOLATIONS, MODES, Augment, Preprocess
from train_jax.data.papers import KINDS, Papers
from train_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class PreprocessOptions(Options):
    """Image preprocessing; see `train_jax.data.images.Preprocess`."""

    mode: str = option("crop", "center crop, or squash of both sides", choices=MODES)
    interpolation: str = option("bicubic", "interpolation method of resizing", choices=INTERPOLATIONS)


@dataclasses.dataclass(frozen=True)
class AugmentOptions(Options):
    """Augmentation of training images; see `train_jax.data.images.Augment` and `train_jax.data.papers.Papers`."""

    scale: tuple[float, ...] = option(
        (1.0, 1.0), "area range of random resized crops as shares of the image area; (1, 1): no crop", above=0, most=1
    )
    flip: bool = option(False, "random horizontal flip; may make captions such as 'left of' false")
    papers: tuple[str, ...] = option(
        ("white",), f"backgrounds of images with transparency, one of which is chosen at random: {', '.join(KINDS)}"
    )
    sizes: tuple[float, ...] = option(
        (1.0, 1.0), "range of the side of an image with transparency, as a share of its paper's", above=0, most=2
    )
    shift: float = option(
        0.0, "largest shift of an image with transparency on its paper, as a share of the side", least=0, most=1
    )
    rotate: float = option(0.0, "largest rotation of an image with transparency, in degrees", least=0, most=180)
    color_jitter: tuple[float, ...] = option(
        (0.0, 0.0, 0.0, 0.0),
        "largest relative change of brightness, contrast and saturation, and largest change of the hue in circles",
        least=0,
    )
    color_jitter_prob: float = option(1.0, "share of the images whose colours are jittered", least=0, most=1)
    gray_scale_prob: float = option(0.0, "share of the images that are made grey", least=0, most=1)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        is_range = len(self.scale) == 2 and self.scale[0] <= self.scale[1]
        self.require(is_range, path, "scale", "two shares of the area, 0 < from <= to <= 1")
        is_known = len(self.papers) > 0 and set(self.papers) <= set(KINDS)
        self.require(is_known, path, "papers", f"one or more of {', '.join(KINDS)}")
        is_range = len(self.sizes) == 2 and self.sizes[0] <= self.sizes[1]
        self.require(is_range, path, "sizes", "two shares of the side, 0 < from <= to <= 2")
        is_jitter = len(self.color_jitter) == 4 and self.color_jitter[3] <= 0.5
        self.require(is_jitter, path, "color_jitter", "four numbers: brightness, contrast, saturation, and hue <= 0.5")

    @property
    def is_identity(self) -> bool:
        """Whether the options disable all augmentation."""
        is_still = tuple(self.scale) == (1.0, 1.0) and not self.flip
        return is_still and self._make_papers() is None and self._make_jitter() is None

    def _make_papers(self) -> Papers | None:
        """Makes the papers; None for white papers alone, on which images are neither resized, shifted nor rotated."""
        papers = Papers(tuple(self.papers), tuple(self.sizes), self.shift, self.rotate)
        return None if set(papers.kinds) == {"white"} and papers == Papers(papers.kinds) else papers

    def _make_jitter(self) -> ColorJitter | None:
        """Makes the colour jitter; None if no colour would change."""
        jitters = any(self.color_jitter) and self.color_jitter_prob > 0
        if not jitters and not self.gray_scale_prob:
            return None
        return ColorJitter(*self.color_jitter, self.color_jitter_prob, self.gray_scale_prob)

    def make(self, preprocess: Preprocess) -> Augment:
        """Makes the augmentation for a model's preprocessing."""
        return Augment(preprocess, tuple(self.scale), self.flip, self._make_papers(), self._make_jitter())


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(Options):
    """Options of the tokenizer of captions."""

    path: str = option("", "tokenizer file, or folder with one; empty: train a tokenizer on the captions")
    vocab_size: int = option(8192, "vocabulary size of a trained tokenizer", least=2)
    captions: int = option(100_000, "number of records whose captions train a tokenizer", least=1)
