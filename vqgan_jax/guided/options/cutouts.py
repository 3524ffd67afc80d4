"""What the CLIPs see of the picture."""

import dataclasses

from train_jax.options import option
from vqgan_jax.guided.options.group import Group, traced_option
from vqgan_jax.guided.options.schedule import QUALITIES

CUT_METHODS = ("crops", "pooling")


@dataclasses.dataclass(frozen=True)
class Cutouts(Group):
    """Cutouts encoded by CLIP"""

    cuts: int = option(QUALITIES["normal"]["cuts"], "number of cutouts per step", least=1, most=10**5)
    cut_method: str = option("crops", "random square crops, or the whole image pooled", choices=CUT_METHODS)


@dataclasses.dataclass(frozen=True)
class Crops(Group):
    """Sizes of random crops"""

    needs = {"cut_method": ("crops",)}

    cut_power: float = traced_option(
        1.0, "exponent of the uniform sample for the side; larger values give smaller crops", above=0
    )
    cut_min: float = traced_option(
        0.0, "smallest side of a crop, as a fraction of the shorter side; 0: CLIP's resolution", least=0, most=1
    )


@dataclasses.dataclass(frozen=True)
class WideCuts(Group):
    """Wide cutouts"""

    needs = {"wide": ()}

    wide: float = traced_option(
        0.0, "fraction of the cutouts that show the whole picture, smaller, on grey paper", least=0, most=1
    )
    wide_side: float = traced_option(1.5, "largest side of a wide cutout, relative to the picture's longer side", least=1)


@dataclasses.dataclass(frozen=True)
class Augmentations(Group):
    """Random augmentations of a cutout"""

    flip: float = traced_option(0.5, "probability of a horizontal flip", least=0, most=1)
    rotate: float = traced_option(10.0, "largest rotation in degrees", least=0, most=180)
    shift: float = traced_option(0.05, "largest shift, as a fraction of the side", least=0, most=1)
    perspective: float = traced_option(0.1, "largest perspective distortion", least=0, most=0.9)
    jitter: float = traced_option(0.1, "largest change of brightness, contrast, saturation and hue", least=0, most=1)
    erase: float = traced_option(0.0, "probability that a random rectangle is erased", least=0, most=1)
    noise: float = traced_option(0.1, "largest standard deviation of Gaussian noise", least=0)
