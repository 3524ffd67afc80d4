"""Options of a painting, in groups. Contradictions are errors.

Users name options without their group: `paint(…, edge=1.0)`, `--edge 1`, `edge: 1.0` in a config file, "edge" in the
metadata of a PNG. Code reads options by group, `options.border.edge`. A disabled group is None. Setting one of its
options is an error, because the option would have no effect.

Traced options are arguments of the compiled programs: changing them needs no recompilation, and paintings that differ
only in traced options are batched (`paint_many`).
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
from vqgan_jax.guided import drawers

if typing.TYPE_CHECKING:
    from vqgan_jax.guided.drawers.drawer import Drawer

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
IMAGE_OPTIONS = ("init_image", "overlay")

_MAX_STEPS = 10**6
_ImageSource = str | Path | Image.Image | np.ndarray


def traced_option(default: float, meaning: str, **bounds: float | int) -> Any:
    """Declares a traced option of a group. Arguments are those of `train_jax.options.option`."""
    return dataclasses.field(default=default, metadata=option(default, meaning, **bounds).metadata | {"traced": True})


class Group(schema.Options):
    """A group of options. The docstring of a subclass is the title of the group in `--help`.

    Attributes:
      needs: conditions that enable the group, any of which is sufficient: names of options (of any group) and their
        enabling values; (): any value but the default. A group without conditions is always enabled.
      excludes: names of options and the other options of the group that cannot be set together with them.
    """

    needs: ClassVar[Mapping[str, Collection[str]]] = {}
    excludes: ClassVar[Mapping[str, Collection[str]]] = {}

    def __post_init__(self):
        stated = {name for name, value in vars(self).items() if _differs_from_default(name, value)}
        for name in stated & self.excludes.keys():
            for excluded in stated.intersection(self.excludes[name]):
                raise ConfigError(f"{excluded} = {getattr(self, excluded)!r} beside {name}: give only one of them")

    @classmethod
    def is_enabled(cls, values: Mapping[str, Any]) -> bool:
        """Returns whether the values of all options, by flat name, enable the group."""
        return not cls.needs or any(
            values[name] in enabling if enabling else _differs_from_default(name, values[name])
            for name, enabling in cls.needs.items()
        )

    @classmethod
    def describe_needs(cls) -> str:
        """Describes what enables the group, such as "edge" or "latents = soft or gumbel"; empty if always enabled."""
        return " or ".join(
            f"{name} = {' or '.join(enabling)}" if enabling else name for name, enabling in cls.needs.items()
        )


@dataclasses.dataclass(frozen=True)
class Schedule(Group):
    """Optimisation schedule"""

    quality: str = option(
        "normal", "preset of steps and cuts; explicit values override it", choices=tuple(QUALITIES), identity=False
    )
    steps: int = option(QUALITIES["normal"]["steps"], "number of optimisation steps", least=1, most=_MAX_STEPS)
    save_every: int = option(50, "number of steps between snapshots", least=1, most=_MAX_STEPS, identity=False)


@dataclasses.dataclass(frozen=True)
class Drawing(Group):
    """Drawer"""

    needs = {"drawer": ()}

    drawer: str = option("vqgan", "what is optimised; all but vqgan need no VQGAN", choices=tuple(drawers.TABLE))
    drawer_options: Mapping | str | None = option(
        None, "options of the drawer, a mapping or NAME=VALUE,NAME=VALUE; see vqgan-jax drawers"
    )
    sparsity: float = traced_option(
        0.0, "weight of the drawer's penalty of superfluous detail; see vqgan-jax drawers", least=0
    )

    def make(self) -> "Drawer":
        """Makes the drawer."""
        return make_drawer(self.drawer, self.drawer_options or {})


@dataclasses.dataclass(frozen=True)
class Canvas(Group):
    """Image size and overlay"""

    excludes = {"size": ("aspect", "scale")}

    size: tuple[int, int] | None = option(
        None, "(height, width) in pixels; default: the VQGAN's training size, or twice CLIP's", least=1
    )
    aspect: str | None = option(None, "aspect ratio at constant area: width:height, square, widescreen or portrait")
    scale: float = option(1.0, "factor on the sides of the default size", above=0)
    overlay: _ImageSource | None = option(None, "image with transparency (a PNG) that is composited over the result")

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
class Start(Group):
    """Initial image (default: random codes)"""

    needs = {"init_image": (), "init_noise": ()}
    excludes = {"init_image": ("init_noise",)}

    init_image: _ImageSource | None = option(None, "initial image")
    init_noise: str | None = option(None, "kind of a generated initial image; plain is light grey", choices=INIT_NOISES)
    init_weight: float = traced_option(0.0, "weight of the latents' squared distance to the initial latents", least=0)
    init_pixels: float = traced_option(0.0, "weight of the pixels' squared distance to the initial image", least=0)


@dataclasses.dataclass(frozen=True)
class Latents(Group):
    """Latents of a VQGAN"""

    needs = {"drawer": ("vqgan",)}

    latents: str = option("straight", "latent parametrisation: vectors (straight) or logits of codes", choices=LATENTS)


@dataclasses.dataclass(frozen=True)
class Probabilities(Group):
    """Temperature of soft and gumbel latents"""

    needs = {"latents": ("soft", "gumbel")}

    temperature: float = traced_option(1.0, "softmax temperature at the first step", above=0)
    temperature_end: float = traced_option(
        0.0, "softmax temperature at the last step, with geometric decay; 0: constant", least=0
    )


@dataclasses.dataclass(frozen=True)
class Optimization(Group):
    """Optimiser"""

    optimizer: str = option("adam", "optimiser of optax", choices=OPTIMIZERS)
    lr: float = traced_option(0.1, "learning rate", above=0)
    average: float = traced_option(
        0.0, "decay of the moving average of the latents or parameters, which is rendered; 0: off", least=0, most=0.9999
    )


@dataclasses.dataclass(frozen=True)
class RateDecay(Group):
    """Decay of the learning rate"""

    needs = {"lr_decay": ()}

    lr_decay: float = traced_option(1.0, "factor on the learning rate in the last part of the steps", above=0)
    lr_decay_at: float = traced_option(0.75, "fraction of the steps after which lr_decay applies", least=0, below=1)


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
class Augmentations(Group):
    """Random augmentations of a cutout"""

    flip: float = traced_option(0.5, "probability of a horizontal flip", least=0, most=1)
    rotate: float = traced_option(10.0, "largest rotation in degrees", least=0, most=180)
    shift: float = traced_option(0.05, "largest shift, as a fraction of the side", least=0, most=1)
    perspective: float = traced_option(0.1, "largest perspective distortion", least=0, most=0.9)
    jitter: float = traced_option(0.1, "largest change of brightness, contrast, saturation and hue", least=0, most=1)
    erase: float = traced_option(0.0, "probability that a random rectangle is erased", least=0, most=1)
    noise: float = traced_option(0.1, "largest standard deviation of Gaussian noise", least=0)


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
class Prior(Group):
    """Prior on the codes"""

    needs = {"prior": ()}

    prior: str | None = option(None, "run directory of a second stage (a prior, or a DALL-E) of the VQGAN's codes")
    prior_weight: float = traced_option(
        0.05, "weight of the mean negative log-likelihood of a code, in nats; it grows linearly from 0 to this", least=0
    )
    prior_text: bool = option(
        False, "whether a DALL-E as prior reads the prompt (its first text), so that images of it are likely"
    )


@dataclasses.dataclass(frozen=True)
class Memory(Group):
    """Memory"""

    excludes = {"memory": ("micro_cuts", "remat")}

    memory: float | None = option(
        None, "memory budget of a step in GiB per device; cutouts are split to fit", above=0, identity=False
    )
    micro_cuts: int = option(
        0, "number of cutouts that CLIP encodes at a time; 0: all", least=0, most=10**5, identity=False
    )
    remat: bool = option(False, "rematerialisation of the decoder in the backward pass, to save memory", identity=False)


@dataclasses.dataclass(frozen=True)
class Options:
    """Resolved options of a painting; None: a disabled group. Created by `resolve`."""

    schedule: Schedule
    drawing: Drawing | None
    canvas: Canvas
    start: Start | None
    latents: Latents | None
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
    prior: Prior | None
    memory: Memory

    def to_flat_dict(self) -> dict[str, Any]:
        """Returns all options as a flat dict. Disabled groups contribute their default values."""
        values = dict(_DEFAULTS)
        for name in GROUPS:
            if (group := getattr(self, name)) is not None:
                values |= vars(group)
        return values

    def hparams(self) -> dict[str, np.float32]:
        """Returns the traced options and the number of steps."""
        values = self.to_flat_dict()
        return {name: np.float32(values[name]) for name in (*TRACED, "steps")}

    def to_json(self) -> dict[str, Any]:
        """Returns all options as a flat dict for JSON. Images given as arrays become the string "(an array)"."""
        values = self.to_flat_dict()
        for name in IMAGE_OPTIONS:
            if values[name] is not None:
                values[name] = str(values[name]) if isinstance(values[name], str | Path) else "(an array)"
        values |= {"size": values["size"] and list(values["size"]), "palette": list(values["palette"])}
        return values | {"drawer_options": _to_json(values["drawer_options"])}


def add_disabled_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults of groups that are disabled by default and of which `values` have no option.

    Options that an earlier version wrote lack the groups that it did not have.
    """
    added = {}
    for group in GROUPS.values():
        names = [field.name for field in dataclasses.fields(group)]
        if not values.keys() & set(names) and not group.is_enabled(_DEFAULTS):
            added |= {name: _DEFAULTS[name] for name in names}
    return added | dict(values)


def _group_class(annotation: Any) -> type[Group]:
    """Returns the class of a group from its annotation, `X` or `X | None`."""
    return next(iter(typing.get_args(annotation)), annotation)


GROUPS = {field.name: _group_class(field.type) for field in dataclasses.fields(Options)}
FIELDS = {field.name: field for group in GROUPS.values() for field in dataclasses.fields(group)}
TRACED = tuple(name for name, field in FIELDS.items() if "traced" in field.metadata)
FREE = tuple(name for group in GROUPS.values() for name in group.free_options())  # options that do not change the trajectory
_DEFAULTS = {name: field.default for name, field in FIELDS.items()}


def resolve(options: Mapping[str, Any]) -> Options:
    """Resolves options given by their flat names. Raises ConfigError for unknown, invalid or contradictory options."""
    return resolve_many(options, [{}])[0]


def resolve_many(options: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> list[Options]:
    """Resolves `options` combined with each of `settings`, which set traced options only.

    A group that one setting enables is enabled in all.
    """
    completed = [_complete(options | setting) for setting in settings]
    is_enabled = {name: any(map(group.is_enabled, completed)) for name, group in GROUPS.items()}
    for group in (GROUPS[name] for name, enabled in is_enabled.items() if not enabled):
        for values, field in itertools.product(completed, dataclasses.fields(group)):
            if _differs_from_default(name := field.name, values[name]):
                raise ConfigError(
                    f"{name} = {values[name]!r} has no effect: give {group.describe_needs()}, or leave {name} out"
                )
    cuts, micro_cuts = completed[0]["cuts"], completed[0]["micro_cuts"]
    if micro_cuts and cuts % micro_cuts:
        raise ConfigError(f"micro_cuts = {micro_cuts} does not divide cuts = {cuts}")
    if any(values["cut_power"] != 1 for values in completed) and all(values["cut_min"] == 1 for values in completed):
        raise ConfigError("cut_min = 1 makes every crop the whole shorter side: cut_power has no effect; leave one out")
    if completed[0]["drawer"] != "vqgan":
        _check_drawer(completed)
    return [
        Options(**{name: _make_group(name, values) if enabled else None for name, enabled in is_enabled.items()})
        for values in completed
    ]


def _make_group(name: str, values: Mapping[str, Any]) -> Group:
    return GROUPS[name](**{field.name: values[field.name] for field in dataclasses.fields(GROUPS[name])})


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Parses each option and completes the options with presets and defaults."""
    refuse_unknown(options, FIELDS, "an option")
    options = {name: _parse_option(name, value) for name, value in options.items()}
    if options.get("drawer", "vqgan") != "vqgan":
        options["drawer_options"] = vars(make_drawer(options["drawer"], options.get("drawer_options") or {}))
    return _DEFAULTS | QUALITIES[options.get("quality", "normal")] | options


def make_drawer(name: str, values: Mapping[str, Any] | str) -> "Drawer":
    """Makes a drawer without weights from its options, a mapping whose values may be strings, or NAME=VALUE,NAME=VALUE.

    Raises ConfigError for unknown or invalid options.
    """
    values = _parse_assignments(values) if isinstance(values, str) else values
    drawer_class = drawers.find(name)
    fields = {field.name: field for field in dataclasses.fields(drawer_class)}
    refuse_unknown(values, fields, f"an option of the drawer {name}")
    parsed = {key: schema.parse_value(fields[key], _parse_text(fields[key], value), key) for key, value in values.items()}
    return drawer_class(**parsed)


def _parse_assignments(text: str) -> dict[str, str]:
    """Parses NAME=VALUE,NAME=VALUE. A part without = belongs to the value before it: colours=red,blue."""
    values: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if equals:
            values[name] = value
        elif values:
            values[next(reversed(values))] += f",{name}"
        else:
            raise ConfigError(f"drawer_options = {text!r}; it must be NAME=VALUE, separated by commas")
    return values


def _parse_text(field: dataclasses.Field, value: Any) -> Any:
    """Parses a string as the type of a drawer's option. What has another type is returned as it is."""
    if not isinstance(value, str) or isinstance(field.default, str):
        return _to_python(value)
    if isinstance(field.default, tuple):
        return tuple(part.strip() for part in value.split(","))
    try:
        return {"true": True, "false": False}[value] if isinstance(field.default, bool) else type(field.default)(value)
    except (ValueError, KeyError):
        return value  # refused for its type


def _check_drawer(completed: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for options that mean nothing to a drawer."""
    from vqgan_jax.guided.drawers.drawer import Drawer

    name = completed[0]["drawer"]
    if completed[0]["prior"] is not None:
        raise ConfigError(f"prior = {completed[0]['prior']}: it models the codes of a VQGAN, and drawer = {name} has none")
    weights = [values["sparsity"] for values in completed if values["sparsity"]]
    if weights and drawers.find(name).regularise is Drawer.regularise:
        raise ConfigError(f"sparsity = {weights[0]:g}: drawer = {name} has no penalty of detail; leave it out")


def _parse_option(name: str, value: Any) -> Any:
    """Checks and converts the value of an option."""
    value = schema.parse_value(FIELDS[name], _to_python(value), name)
    if isinstance(value, float) and not in_float32(value):
        raise ConfigError(f"{name} = {value!r}; it must be a number that float32 does not round to 0 or infinity")
    return value


def _to_python(value: Any) -> Any:
    """Converts NumPy scalars to Python numbers (for JSON) and lists to tuples (for comparison with defaults)."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_to_python, value)) if isinstance(value, list | tuple) else value


def _to_json(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return values and {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _differs_from_default(name: str, value: Any) -> bool:
    """Returns whether a value differs from the default of the option."""
    default = FIELDS[name].default
    return value is not None if default is None else value != default


def refuse_unknown(names: Iterable[str], known: Mapping, kind: str) -> None:
    """Raises ConfigError if one of `names` is not in `known`, and suggests the closest known name.

    Args:
      kind: noun phrase for the message, such as "an option".
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{name} is not {kind}: {hint}")


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


def parse_colour(name: str) -> np.ndarray:
    """Parses a colour to RGB, float32 [3] in [0, 1]. Raises ConfigError for unknown colours."""
    try:
        return np.asarray(ImageColor.getrgb(name)[:3], np.float32) / 255
    except ValueError as error:
        raise ConfigError(f"{name!r} is not a colour; write a name such as 'red', or #rrggbb") from error
