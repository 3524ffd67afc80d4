"""Size of the picture, its overlay, its start, and its enlargement."""

import dataclasses
import math

from train_jax.errors import ConfigError
from train_jax.options import option
from vqgan_jax.guided.options.group import Group, ImageSource, traced_option

ASPECTS = {"square": "1:1", "widescreen": "16:9", "portrait": "2:3"}
INIT_NOISES = ("pixels", "gradient", "fractal", "plain")
IMAGE_OPTIONS = ("init_image", "overlay", "style")


@dataclasses.dataclass(frozen=True)
class Canvas(Group):
    """Image size and overlay"""

    excludes = {"size": ("aspect", "scale")}

    size: tuple[int, int] | None = option(
        None, "(height, width) in pixels; default: the VQGAN's training size, or twice CLIP's", least=1
    )
    aspect: str | None = option(None, "aspect ratio at constant area: width:height, square, widescreen or portrait")
    scale: float = option(1.0, "factor on the sides of the default size", above=0)
    overlay: ImageSource | None = option(None, "image with transparency (a PNG) that is composited over the result")

    def __post_init__(self):
        super().__post_init__()
        if self.aspect is not None:
            parse_aspect_ratio(self.aspect)

    def image_size(self, default_size: int, factor: int) -> tuple[int, int]:
        """Computes height and width in pixels. Raises ConfigError for sizes that are not multiples of `factor`.

        Args:
          default_size: side of the VQGAN's training images, or the default side of other drawers.
          factor: number that must divide both sides: the downsampling factor of the VQGAN, or a drawer's.
        """
        if self.size is not None:
            if any(side % factor for side in self.size):
                near = " x ".join(str(max(factor, round(side / factor) * factor)) for side in self.size)
                raise ConfigError(
                    f"size = {self.size[0]} x {self.size[1]}: both sides must be divisible by {factor}, the "
                    f"downsampling factor of this VQGAN or drawer; {near} is near"
                )
            return self.size
        width, height = parse_aspect_ratio(self.aspect or "square")
        ratio = math.sqrt(width / height)

        def round_to_codes(side: float | int) -> tuple[int, int]:
            height, width = (max(factor, round(x / factor) * factor) for x in (side / ratio, side * ratio))
            return height, width

        size = round_to_codes(default_size * self.scale)
        if self.scale != 1 and size == round_to_codes(default_size):
            raise ConfigError(
                f"scale = {self.scale:g}: rounded to {'codes of ' if factor > 1 else ''}{factor} pixels, the size stays "
                f"{size[0]} x {size[1]}; choose a larger change, or set size"
            )
        return size


@dataclasses.dataclass(frozen=True)
class RepeatedOverlay(Group):
    """Overlay that is painted over"""

    needs = {"overlay_every": ()}

    overlay_every: int = option(
        0, "number of steps (frames) after which the overlay is laid over the picture again, and painted over; 0: it stays",
        least=0,
    )  # fmt: skip
    overlay_until: int = option(0, "last step (frame) at which this happens; 0: no last one", least=0)
    overlay_alpha: float = option(1.0, "opacity of the overlay", above=0, most=1)

    def __post_init__(self):
        super().__post_init__()
        if 0 < self.overlay_until < self.overlay_every:
            raise ConfigError(
                f"overlay_until = {self.overlay_until} is before overlay_every = {self.overlay_every}, the first time"
            )

    def check_count(self, count: int, what: str) -> None:
        """Raises ConfigError if no overlay is laid within `count` steps or frames."""
        if self.overlay_every >= count:
            raise ConfigError(f"overlay_every = {self.overlay_every} has no effect: it must be below the {count} {what}")

    def is_due(self, done: int) -> bool:
        """Returns whether the overlay is laid over after this number of steps (frames)."""
        return done > 0 and done % self.overlay_every == 0 and not 0 < self.overlay_until < done


@dataclasses.dataclass(frozen=True)
class Start(Group):
    """Initial image (default: random codes)"""

    needs = {"init_image": (), "init_noise": (), "init_dalle": ()}
    excludes = {"init_image": ("init_noise", "init_dalle"), "init_noise": ("init_dalle",)}

    init_image: ImageSource | None = option(None, "initial image")
    init_noise: str | None = option(None, "kind of a generated initial image; plain is light grey", choices=INIT_NOISES)
    init_dalle: str | None = option(None, "run directory of a DALL-E, which draws the prompt's first text as initial image")
    init_weight: float = traced_option(0.0, "weight of the latents' squared distance to the initial latents", least=0)
    init_pixels: float = traced_option(0.0, "weight of the pixels' squared distance to the initial image", least=0)


@dataclasses.dataclass(frozen=True)
class DrawnStart(Group):
    """Initial image drawn by a DALL-E"""

    needs = {"init_dalle": ()}

    init_best: int = option(1, "number of drawings, of which the first CLIP chooses the initial image", least=1, most=1024)
    init_temperature: float = option(1.0, "temperature of the drawings", least=0)
    init_guidance: float = option(1.0, "guidance of the drawings (arXiv 2207.12598); 1: none", least=0)


@dataclasses.dataclass(frozen=True)
class Enlarge(Group):
    """Enlargement"""

    needs = {"enlarge": ()}

    enlarge: int = option(
        1, "factor on the sides of the finished pictures, which are enlarged and painted on", least=1, most=4, identity=False
    )
    enlarge_steps: int = option(50, "steps at the larger size", least=0, most=10**6, identity=False)
    enlarge_tiles: bool = option(
        False, "whether the enlarged picture is encoded and decoded in tiles of the smaller size", identity=False
    )

    def __post_init__(self):
        super().__post_init__()
        if self.enlarge_tiles and self.enlarge_steps:
            raise ConfigError(f"enlarge_steps = {self.enlarge_steps}: tiles are not painted on; set enlarge_steps = 0")


def parse_aspect_ratio(text: str) -> tuple[float, float]:
    """Parses an aspect ratio to relative width and height. Raises ConfigError for invalid strings."""
    sides = ASPECTS.get(text, text).split(":")
    try:
        width, height = map(float, sides)
    except ValueError:
        width = height = 0.0
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ConfigError(f"aspect = {text!r}; it must be {', '.join(ASPECTS)}, or WIDTH:HEIGHT such as 16:9")
    return width, height
