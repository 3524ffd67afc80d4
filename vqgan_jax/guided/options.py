"""Every option of a painting, in groups. Contradictions are errors.

Users name options without their group: `paint(…, edge=1.0)`, `--edge 1`, `edge: 1.0` in a config file, "edge" in the
metadata of a PNG. Code reads them by group, `options.border.edge`. A group that is off is None, and its options are refused:
an option without effect is a mistake.

Traced options are arguments of the compiled programs: other values need no other program, and paintings that differ in
them are made together (`paint_many`).
"""

import dataclasses
import difflib
import itertools
import math
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageColor

from train_jax import options as schema
from train_jax.errors import ConfigError, in_float32
from train_jax.options import option

QUALITIES = {
    "draft": {"steps": 100, "cuts": 8},
    "normal": {"steps": 300, "cuts": 32},
    "better": {"steps": 400, "cuts": 48},
    "best": {"steps": 500, "cuts": 64},
}
ASPECTS = {"square": "1:1", "widescreen": "16:9", "portrait": "2:3"}
OPTIMIZERS = ("adam", "amsgrad", "nadam", "radam", "adagrad", "rmsprop", "lion", "sgd")
LATENTS = ("straight", "soft", "gumbel")
CUT_METHODS = ("crops", "pooling")
INIT_NOISES = ("pixels", "gradient", "fractal", "plain")
PICTURES = ("init_image", "overlay")

_MAX_STEPS = 10**6
_Picture = str | Path | Image.Image | np.ndarray


def traced(default: float, meaning: str, **bounds: float | int) -> Any:
    """A field of a group for a traced number; arguments as those of `train_jax.options.option`."""
    return dataclasses.field(default=default, metadata=option(default, meaning, **bounds).metadata | {"traced": True})


class Group(schema.Options):
    """Options that belong together, by their flat names. The docstring of a group is its title in `--help`.

    Attributes:
      needs: the options, of any group, that turn this group on, with the values that do so; (): all but the default. One
        of them is enough. Without needs a group is always on.
      excludes: for an option of this group, others that must be left out beside it.
    """

    needs: ClassVar[Mapping[str, Collection[str]]] = {}
    excludes: ClassVar[Mapping[str, Collection[str]]] = {}

    def __post_init__(self):
        stated = {name for name, value in vars(self).items() if _differs_from_default(name, value)}
        for name in stated & self.excludes.keys():
            for other in stated.intersection(self.excludes[name]):
                raise ConfigError(f"{other} = {getattr(self, other)!r} beside {name}: give one of them")

    @classmethod
    def is_on(cls, values: Mapping[str, Any]) -> bool:
        """Whether the values of all options, by flat name, turn the group on."""
        return not cls.needs or any(
            values[name] in on if on else _differs_from_default(name, values[name]) for name, on in cls.needs.items()
        )

    @classmethod
    def switches(cls) -> str:
        """What turns the group on, such as "edge" or "latents = soft or gumbel"; "" if it is always on."""
        return " or ".join(f"{name} = {' or '.join(on)}" if on else name for name, on in cls.needs.items())


@dataclasses.dataclass(frozen=True)
class Schedule(Group):
    """Length of the optimisation"""

    quality: str = option("normal", "steps and cuts, unless they are given", choices=tuple(QUALITIES), identity=False)
    steps: int = option(QUALITIES["normal"]["steps"], "of the optimiser", least=1, most=_MAX_STEPS)
    save_every: int = option(50, "steps between snapshots", least=1, most=_MAX_STEPS, identity=False)


@dataclasses.dataclass(frozen=True)
class Canvas(Group):
    """The picture and its size"""

    excludes = {"size": ("aspect", "scale")}

    size: tuple[int, int] | None = option(None, "(height, width) in pixels; default: as the VQGAN was trained", least=1)
    aspect: str | None = option(None, "width:height, or one of square, widescreen, portrait; same area")
    scale: float = option(1.0, "times the sides of the VQGAN's own pictures", above=0)
    overlay: _Picture | None = option(None, "a PNG with transparency that lies on the picture, and stays")

    def __post_init__(self):
        super().__post_init__()
        if self.aspect is not None:
            aspect_ratio(self.aspect)

    def image_size(self, trained_size: int, factor: int) -> tuple[int, int]:
        """Height and width in pixels, whole codes. ConfigError for a size that is not.

        Args:
          trained_size: side of the images that the VQGAN was trained on.
          factor: pixels along a side of one code.
        """
        if self.size is not None:
            if any(side % factor for side in self.size):
                near = " x ".join(str(max(factor, round(side / factor) * factor)) for side in self.size)
                raise ConfigError(
                    f"size = {self.size[0]} x {self.size[1]}: both sides must be divisible by {factor}, the pixels of this "
                    f"VQGAN's codes; {near} is near"
                )
            return self.size
        width, height = aspect_ratio(self.aspect or "square")
        ratio = math.sqrt(width / height)

        def whole_codes(side: float | int) -> tuple[int, int]:
            height, width = (max(factor, round(x / factor) * factor) for x in (side / ratio, side * ratio))
            return height, width

        size = whole_codes(trained_size * self.scale)
        if self.scale != 1 and size == whole_codes(trained_size):
            raise ConfigError(
                f"scale = {self.scale:g}: in whole codes of {factor} pixels the picture stays {size[0]} x {size[1]}; "
                "change it by more, or give size"
            )
        return size


@dataclasses.dataclass(frozen=True)
class Start(Group):
    """Initial picture; by default codes are random"""

    needs = {"init_image": (), "init_noise": ()}
    excludes = {"init_image": ("init_noise",)}

    init_image: _Picture | None = option(None, "a picture to start from")
    init_noise: str | None = option(None, "noise, or paper, to start from", choices=INIT_NOISES)
    init_weight: float = traced(0.0, "weight of the latents' squared distance to the start's", least=0)
    init_pixels: float = traced(0.0, "weight of the pixels' squared distance to the start's", least=0)


@dataclasses.dataclass(frozen=True)
class Latents(Group):
    """Latents"""

    latents: str = option("straight", "what is optimised: vectors, or probabilities of codes", choices=LATENTS)
    average: float = traced(0.0, "decay of the latents' moving average, which is what is shown", least=0, most=0.9999)


@dataclasses.dataclass(frozen=True)
class Probabilities(Group):
    """Probabilities of codes"""

    needs = {"latents": ("soft", "gumbel")}

    temperature: float = traced(1.0, "of the softmax at the first step", above=0)
    temperature_end: float = traced(0.0, "and at the last, geometrically; 0: as at the first", least=0)


@dataclasses.dataclass(frozen=True)
class Optimization(Group):
    """Optimiser"""

    optimizer: str = option("adam", "of optax", choices=OPTIMIZERS)
    lr: float = traced(0.1, "learning rate", above=0)


@dataclasses.dataclass(frozen=True)
class RateDecay(Group):
    """Decay of the learning rate"""

    needs = {"lr_decay": ()}

    lr_decay: float = traced(1.0, "the rate is multiplied by this late", above=0)
    lr_decay_at: float = traced(0.75, "after this share of the steps", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Cutouts(Group):
    """Cuts of the picture that CLIP sees"""

    cuts: int = option(QUALITIES["normal"]["cuts"], "a step", least=1, most=10**5)
    cut_method: str = option("crops", "random squares, or the whole picture pooled", choices=CUT_METHODS)


@dataclasses.dataclass(frozen=True)
class Crops(Group):
    """Sizes of random squares"""

    needs = {"cut_method": ("crops",)}

    cut_power: float = traced(1.0, "of the uniform number that sizes a square; larger: smaller ones", above=0)
    cut_min: float = traced(
        0.0, "smallest square, as a share of the shorter side; 0: CLIP's resolution", least=0, most=1
    )


@dataclasses.dataclass(frozen=True)
class Augmentations(Group):
    """Random changes of a cut"""

    flip: float = traced(0.5, "probability that a cut is mirrored", least=0, most=1)
    rotate: float = traced(10.0, "degrees that a cut is turned at most", least=0, most=180)
    shift: float = traced(0.05, "share of its side that a cut is moved at most", least=0, most=1)
    perspective: float = traced(0.1, "how far a cut is tilted at most", least=0, most=0.9)
    jitter: float = traced(0.1, "change of brightness, contrast, saturation and hue at most", least=0, most=1)
    erase: float = traced(0.0, "probability that a rectangle of a cut is hidden", least=0, most=1)
    noise: float = traced(0.1, "largest standard deviation of the noise on a cut", least=0)


@dataclasses.dataclass(frozen=True)
class Appearance(Group):
    """What the picture should be like"""

    smoothness: float = traced(0.0, "weight of the total variation")
    saturation: float = traced(0.0, "weight of colourfulness; a negative one makes pale")
    symmetry: float = traced(0.0, "weight of the difference to the mirror image")


@dataclasses.dataclass(frozen=True)
class Border(Group):
    """Plain frame"""

    needs = {"edge": ()}

    edge: float = traced(0.0, "weight of a plain frame")
    edge_colour: str = option("white", "of the frame: a name or #rrggbb")
    edge_width: float = traced(0.1, "of the frame, as a share of the shorter side", above=0, most=0.5)

    def __post_init__(self):
        rgb(self.edge_colour)


@dataclasses.dataclass(frozen=True)
class Palette(Group):
    """Palette"""

    needs = {"palette": ()}

    palette: tuple[str, ...] = option((), "colours that the picture is to be made of, separated by commas")
    palette_weight: float = traced(1.0, "weight of the distance to the nearest colour")

    def __post_init__(self):
        for name in self.palette:
            rgb(name)


@dataclasses.dataclass(frozen=True)
class Aesthetic(Group):
    """Aesthetic score"""

    needs = {"aesthetic": ()}

    aesthetic: str | None = option(None, "an .npz with a linear head on the first CLIP: weight [d], bias []")
    aesthetic_weight: float = traced(0.1, "weight of the head's score")


@dataclasses.dataclass(frozen=True)
class Memory(Group):
    """Memory"""

    excludes = {"memory": ("micro_cuts", "remat")}

    memory: float | None = option(
        None, "GiB a device that a step may take; cuts are split to fit", above=0, identity=False
    )
    micro_cuts: int = option(0, "cuts that go through CLIP together; 0: all", least=0, most=10**5, identity=False)
    remat: bool = option(False, "compute the decoder anew in the backward pass, to save memory", identity=False)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a painting; None: a group that is off. Made by `resolve`."""

    schedule: Schedule
    canvas: Canvas
    start: Start | None
    latents: Latents
    probabilities: Probabilities | None
    optimization: Optimization
    rate_decay: RateDecay | None
    cutouts: Cutouts
    crops: Crops | None
    augmentations: Augmentations
    appearance: Appearance
    border: Border | None
    palette: Palette | None
    aesthetic: Aesthetic | None
    memory: Memory

    def flat(self) -> dict[str, Any]:
        """All options by their flat names; those of groups that are off at their defaults."""
        values = dict(_DEFAULTS)
        for name in GROUPS:
            if (group := getattr(self, name)) is not None:
                values |= vars(group)
        return values

    def hparams(self) -> dict[str, np.float32]:
        """The traced options, and the number of steps."""
        values = self.flat()
        return {name: np.float32(values[name]) for name in (*TRACED, "steps")}

    def to_json(self) -> dict[str, Any]:
        """All options by their flat names, as JSON can hold them; pictures that came as arrays are only named as such."""
        values = self.flat()
        for name in PICTURES:
            if values[name] is not None:
                values[name] = str(values[name]) if isinstance(values[name], str | Path) else "(an array)"
        return values | {"size": values["size"] and list(values["size"]), "palette": list(values["palette"])}


def _group_class(annotation: Any) -> type[Group]:
    return next(iter(typing.get_args(annotation)), annotation)


GROUPS = {field.name: _group_class(field.type) for field in dataclasses.fields(Options)}
FIELDS = {field.name: field for group in GROUPS.values() for field in dataclasses.fields(group)}
TRACED = tuple(name for name, field in FIELDS.items() if "traced" in field.metadata)
FREE = tuple(name for group in GROUPS.values() for name in group.free())  # options without effect on the trajectory
_DEFAULTS = {name: field.default for name, field in FIELDS.items()}


def resolve(options: Mapping[str, Any]) -> Options:
    """Completes options, given by their flat names. ConfigError for unknown ones, of the wrong type, or at odds."""
    return resolve_many(options, [{}])[0]


def resolve_many(options: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> list[Options]:
    """Completes `options` with each of `settings`, which differ in traced options alone.

    A group that one of them turns on is on in all.
    """
    completed = [_complete(options | setting) for setting in settings]
    is_on = {name: any(map(group.is_on, completed)) for name, group in GROUPS.items()}
    for group in (GROUPS[name] for name, on in is_on.items() if not on):
        for values, field in itertools.product(completed, dataclasses.fields(group)):
            if _differs_from_default(name := field.name, values[name]):
                raise ConfigError(
                    f"{name} = {values[name]!r} has no effect: give {group.switches()}, or leave {name} out"
                )
    cuts, micro_cuts = completed[0]["cuts"], completed[0]["micro_cuts"]
    if micro_cuts and cuts % micro_cuts:
        raise ConfigError(f"micro_cuts = {micro_cuts} does not divide cuts = {cuts}")
    if any(values["cut_power"] != 1 for values in completed) and all(values["cut_min"] == 1 for values in completed):
        raise ConfigError("cut_min = 1 makes every cut the whole shorter side: cut_power has no effect; leave one out")
    return [
        Options(**{name: _group(name, values) if on else None for name, on in is_on.items()}) for values in completed
    ]


def _group(name: str, values: Mapping[str, Any]) -> Group:
    return GROUPS[name](**{field.name: values[field.name] for field in dataclasses.fields(GROUPS[name])})


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options by their flat names, each of them checked by itself."""
    refuse_unknown(options, FIELDS, "option")
    options = {name: _parse(name, value) for name, value in options.items()}
    return _DEFAULTS | QUALITIES[options.get("quality", "normal")] | options


def _parse(name: str, value: Any) -> Any:
    value = schema.parse_value(FIELDS[name], _plain(value), name)
    if isinstance(value, float) and not in_float32(value):
        raise ConfigError(f"{name} = {value!r}; it must be a number that float32 can tell from 0 and from infinity")
    return value


def _plain(value: Any) -> Any:
    """Converts NumPy's scalars, which JSON does not know, and lists, which cannot be compared with defaults."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _differs_from_default(name: str, value: Any) -> bool:
    """Whether a value is other than the default of the option."""
    default = FIELDS[name].default
    return value is not None if default is None else value != default


def refuse_unknown(names: Iterable[str], known: Mapping, kind: str) -> None:
    """ConfigError for the first of `names` that is not among `known`, with the closest name that is."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{name} is no {kind}: {hint}")


def aspect_ratio(text: str) -> tuple[float, float]:
    """Width and height, in proportion. ConfigError for a text that is no aspect ratio."""
    sides = ASPECTS.get(text, text).split(":")
    try:
        width, height = map(float, sides)
    except ValueError:
        width = height = 0.0
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ConfigError(f"aspect = {text!r}; it must be {', '.join(ASPECTS)}, or WIDTH:HEIGHT such as 16:9")
    return width, height


def rgb(name: str) -> np.ndarray:
    """A colour's float32 [3] in [0, 1]. ConfigError for a name that is no colour."""
    try:
        return np.asarray(ImageColor.getrgb(name)[:3], np.float32) / 255
    except ValueError as error:
        raise ConfigError(f"{name!r} is no colour; write a name such as 'red', or #rrggbb") from error
