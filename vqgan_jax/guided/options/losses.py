"""Losses of the picture beside those of the prompt."""

import dataclasses

import numpy as np
from PIL import ImageColor

from train_jax.errors import ConfigError
from train_jax.options import option
from vqgan_jax.guided import custom_losses
from vqgan_jax.guided.options.group import Group, ImageSource, traced_option


@dataclasses.dataclass(frozen=True)
class Appearance(Group):
    """Losses of the image"""

    smoothness: float = traced_option(0.0, "weight of the total variation")
    saturation: float = traced_option(0.0, "weight of colourfulness; negative values reduce it")
    symmetry: float = traced_option(0.0, "weight of the difference to the horizontally flipped image")


@dataclasses.dataclass(frozen=True)
class Border(Group):
    """Border"""

    needs = {"edge": ()}

    edge: float = traced_option(0.0, "weight of a border of uniform colour")
    edge_colour: str = option("white", "colour of the border: a name or #rrggbb")
    edge_width: float = traced_option(0.1, "width of the border, as a fraction of the shorter side", above=0, most=0.5)

    def __post_init__(self):
        parse_colour(self.edge_colour)


@dataclasses.dataclass(frozen=True)
class Vignette(Group):
    """Vignette"""

    needs = {"vignette": ()}

    vignette: float = traced_option(0.0, "weight of a colour that grows from the centre outwards")
    vignette_colour: str = option("white", "colour of the vignette: a name or #rrggbb")
    vignette_width: float = traced_option(0.25, "standard deviation of the free centre, as a fraction of the sides", above=0)

    def __post_init__(self):
        parse_colour(self.vignette_colour)


@dataclasses.dataclass(frozen=True)
class Palette(Group):
    """Palette"""

    needs = {"palette": ()}

    palette: tuple[str, ...] = option((), "target colours of the pixels, separated by commas")
    palette_weight: float = traced_option(1.0, "weight of the squared distance to the nearest palette colour")

    def __post_init__(self):
        for name in self.palette:
            parse_colour(name)


@dataclasses.dataclass(frozen=True)
class Aesthetic(Group):
    """Aesthetic score"""

    needs = {"aesthetic": ()}

    aesthetic: str | None = option(None, "file (.npz) of a linear head on the first CLIP: weight [d], bias []")
    aesthetic_weight: float = traced_option(0.1, "weight of the head's score")


@dataclasses.dataclass(frozen=True)
class Style(Group):
    """Style"""

    needs = {"style": ()}

    style: ImageSource | None = option(None, "image whose style the picture takes")
    style_weight: float = traced_option(1.0, "weight of the relative distance of Gram matrices")
    style_network: str | None = option(None, "file of LPIPS, whose VGG16 sees the style; default: the first CLIP sees it")


@dataclasses.dataclass(frozen=True)
class CustomLosses(Group):
    """Your own losses"""

    needs = {"losses": ()}

    losses: tuple = option((), "functions [n, H, W, 3] in [0, 1] -> [n], each as module:function or module:function:weight")

    def __post_init__(self):
        object.__setattr__(self, "losses", tuple(map(custom_losses.parse, self.losses)))


@dataclasses.dataclass(frozen=True)
class Prior(Group):
    """Prior on the codes"""

    needs = {"prior": ()}

    prior: str | None = option(None, "run directory of a second stage (a prior, or a DALL-E) of the VQGAN's codes")
    prior_weight: float = traced_option(
        0.05, "weight of the mean negative log-likelihood of a code, in nats; it grows linearly from 0 to this", least=0
    )
    prior_start: float = traced_option(
        0.0, "share of the steps before which the prior has no weight, so that CLIP alone decides colours", least=0, below=1
    )
    prior_text: bool = option(
        False, "whether a DALL-E as prior reads the prompt (its first text), so that images of it are likely"
    )
    prior_guidance: float = traced_option(
        1.0, "guidance of the likelihood with prior_text; above 1, images that are likely because of the prompt", least=0
    )

    def __post_init__(self):
        if self.prior_guidance != 1 and not self.prior_text:
            raise ConfigError(f"prior_guidance = {self.prior_guidance:g} has no effect: give prior_text, or leave it out")


def parse_colour(name: str) -> np.ndarray:
    """Parses a colour to RGB, float32 [3] in [0, 1]. Raises ConfigError for unknown colours."""
    try:
        return np.asarray(ImageColor.getrgb(name)[:3], np.float32) / 255
    except ValueError as error:
        raise ConfigError(f"{name!r} is not a colour; write a name such as 'red', or #rrggbb") from error
