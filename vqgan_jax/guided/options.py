"""Every option of a painting, with its default, its meaning, and what it may be. Contradictions are errors.

The command line and the config file are made from this table. Options marked as numbers are traced: other values of them
need no other program, and pictures with different ones are painted together (`paint_many`).
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from train_jax.errors import ConfigError, in_float32

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

_ANY = (-math.inf, math.inf)
_POSITIVE = (np.nextafter(0, 1), math.inf)
_SHARE = (0.0, 1.0)


def _option(default: Any, kind: str, text: str, within=None):
    """A field. kind: "number" (traced), "float", "int", "flag", "choice", "text", "size", "picture", "file", "colours"."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text, "within": within})


@typing.no_type_check  # values of any type arrive here, to be refused with what is allowed
@dataclasses.dataclass(frozen=True)
class Options:
    """What can be said about a painting. Made by `resolve`; raises ConfigError for what cannot be."""

    quality: str = _option("normal", "choice", "steps and cuts, unless they are given", tuple(QUALITIES))
    size: tuple[int, int] | None = _option(None, "size", "height and width in pixels; default: as the VQGAN was trained")
    aspect: str | None = _option(None, "text", "width:height, or one of square, widescreen, portrait; same area")
    scale: float = _option(1.0, "float", "times the sides of the VQGAN's own pictures", _POSITIVE)
    steps: int = _option(0, "int", "of the optimiser", (1, 10**6))
    save_every: int = _option(50, "int", "steps between snapshots", (1, 10**6))

    init_image: Any = _option(None, "picture", "a picture to start from")
    init_noise: str | None = _option(None, "choice", "noise, or paper, to start from; default: random codes", INIT_NOISES)
    init_weight: float = _option(0.0, "number", "pull of the latents to the start's", (0.0, math.inf))
    init_pixels: float = _option(0.0, "number", "pull of the pixels to the start's", (0.0, math.inf))

    latents: str = _option("straight", "choice", "what is optimised: vectors, or codes' probabilities", LATENTS)
    temperature: float = _option(1.0, "number", "of the codes' probabilities at the first step", _POSITIVE)
    temperature_end: float = _option(0.0, "number", "and at the last, geometrically; 0: as at the first", (0, math.inf))
    average: float = _option(0.0, "number", "decay of the latents' moving average, which is what is shown", (0.0, 0.9999))

    optimizer: str = _option("adam", "choice", "of optax", OPTIMIZERS)
    lr: float = _option(0.1, "number", "rate of the optimiser", _POSITIVE)
    lr_decay: float = _option(1.0, "number", "the rate is multiplied by this late", _POSITIVE)
    lr_decay_at: float = _option(0.75, "number", "after this share of the steps", _SHARE)

    cuts: int = _option(0, "int", "pieces of the picture that CLIP sees at a step", (1, 10**5))
    cut_method: str = _option("crops", "choice", "random squares, or the whole picture pooled", CUT_METHODS)
    cut_power: float = _option(1.0, "number", "of the uniform number that sizes a square; larger: smaller ones", _POSITIVE)
    cut_min: float = _option(0.0, "number", "smallest square, as a share of the shorter side; 0: CLIP's resolution", _SHARE)
    flip: float = _option(0.5, "number", "probability that a cut is mirrored", _SHARE)
    rotate: float = _option(10.0, "number", "degrees that a cut is turned at most", (0.0, 180.0))
    shift: float = _option(0.05, "number", "share of its side that a cut is moved at most", _SHARE)
    perspective: float = _option(0.1, "number", "how far a cut is tilted at most", (0.0, 0.9))
    jitter: float = _option(0.1, "number", "change of brightness, contrast, saturation and hue at most", _SHARE)
    erase: float = _option(0.0, "number", "probability that a rectangle of a cut is hidden", _SHARE)
    noise: float = _option(0.1, "number", "most of the noise on a cut", (0.0, math.inf))

    smoothness: float = _option(0.0, "number", "weight of the total variation", _ANY)
    saturation: float = _option(0.0, "number", "weight of colourfulness; a negative one makes pale", _ANY)
    symmetry: float = _option(0.0, "number", "weight of being one's mirror image", _ANY)
    edge: float = _option(0.0, "number", "weight of a plain frame", _ANY)
    edge_colour: str = _option("white", "colour", "of the frame: a name or #rrggbb")
    edge_width: float = _option(0.1, "number", "of the frame, as a share of the shorter side", (0.0, 0.5))
    palette: tuple[str, ...] = _option((), "colours", "colours that the picture is to be made of, separated by commas")
    palette_weight: float = _option(1.0, "number", "of being made of them", _ANY)
    aesthetic: str | None = _option(None, "file", "an .npz with a linear head on the first CLIP: weight [d], bias []")
    aesthetic_weight: float = _option(0.1, "number", "of the head's score", _ANY)
    overlay: Any = _option(None, "picture", "a PNG with transparency that lies on the picture, and stays")

    memory: float | None = _option(None, "float", "GiB a device that a step may take; cuts are split to fit", _POSITIVE)
    micro_cuts: int = _option(0, "int", "cuts that go through CLIP together; 0: all", (0, 10**5))
    remat: bool = _option(False, "flag", "compute the decoder anew in the backward pass, to save memory")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def numbers(self) -> dict[str, np.float32]:
        """The traced options."""
        return {name: np.float32(getattr(self, name)) for name in NUMBERS} | {"steps": np.float32(self.steps)}

    def to_json(self) -> dict[str, Any]:
        """All of them, as JSON can say it; pictures that came as arrays are named as such."""
        found = dataclasses.asdict(self)
        for name in PICTURES:
            if found[name] is not None and not isinstance(found[name], str | Path):
                found[name] = "(an array)"
            elif found[name] is not None:
                found[name] = str(found[name])
        return found | {"size": self.size and list(self.size), "palette": list(self.palette)}


FIELDS = {field.name: field for field in dataclasses.fields(Options)}
NUMBERS = tuple(name for name, field in FIELDS.items() if field.metadata["kind"] == "number")
PICTURES = tuple(name for name, field in FIELDS.items() if field.metadata["kind"] == "picture")


def resolve(given: Mapping[str, Any]) -> Options:
    """All options, of which some are given. ConfigError for unknown ones, of the wrong type, or at odds."""
    return resolve_many(given, [{}])[0]


def resolve_many(given: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> list[Options]:
    """`given` with each of `settings`. What has a meaning in one of them is not at odds with the others."""
    found = [_completed(given | setting) for setting in settings]
    _contradictions(found)
    return found


def _completed(given: Mapping[str, Any]) -> Options:
    refuse_unknown(given, FIELDS, "option")
    given = {name: _plain(value) for name, value in given.items()}
    quality = given.get("quality", "normal")
    if not isinstance(quality, str) or quality not in QUALITIES:
        raise ConfigError(f"quality = {quality!r}; it must be one of {', '.join(QUALITIES)}")
    for name in [name for name, value in given.items() if value is None and FIELDS[name].default is not None]:
        raise ConfigError(f"{name} = None; leave it out for its default, {FIELDS[name].default!r}")
    return Options(**QUALITIES[quality] | given)


def _plain(value: Any) -> Any:
    """Without NumPy's scalars, which JSON does not know, and lists, which cannot be compared with defaults."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def refuse_unknown(given: Mapping, known: Mapping, what: str) -> None:
    """ConfigError for the first name of `given` that is not among `known`, with the nearest that is."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{name} is no {what}: {hint}")


def pixels(options: Options, trained: int, factor: int) -> tuple[int, int]:
    """Height and width of the picture, in whole codes. ConfigError for a size that is not.

    Args:
      trained: side of the pictures that the VQGAN was trained on.
      factor: pixels along a side of one code.
    """
    if options.size is not None:
        if any(side % factor for side in options.size):
            near = " x ".join(str(max(factor, round(side / factor) * factor)) for side in options.size)
            raise ConfigError(
                f"size = {options.size[0]} x {options.size[1]}: both sides must be divisible by {factor}, the pixels of "
                f"this VQGAN's codes; {near} is near"
            )
        return options.size
    width, height = aspect(options.aspect or "square")
    ratio = math.sqrt(width / height)

    def codes(side) -> tuple[int, int]:
        return tuple(max(factor, round(x / factor) * factor) for x in (side / ratio, side * ratio))

    found = codes(trained * options.scale)
    if options.scale != 1 and found == codes(trained):
        raise ConfigError(
            f"scale = {options.scale:g}: in whole codes of {factor} pixels the picture stays {found[0]} x {found[1]}; "
            "change it by more, or give size"
        )
    return found


def aspect(text: str) -> tuple[float, float]:
    """Width and height, in proportion. ConfigError for a text that is none."""
    sides = ASPECTS.get(text, text).split(":")
    try:
        width, height = map(float, sides)
    except ValueError:
        width = height = 0.0
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ConfigError(f"aspect = {text!r}; it must be {', '.join(ASPECTS)}, or WIDTH:HEIGHT such as 16:9")
    return width, height


def rgb(name: str) -> np.ndarray:
    """A colour's float32 [3] in [0, 1]. ConfigError for a name that is none."""
    try:
        return np.asarray(ImageColor.getrgb(name)[:3], np.float32) / 255
    except ValueError as error:
        raise ConfigError(f"{name!r} is no colour; write a name such as 'red', or #rrggbb") from error


def _check(field: dataclasses.Field, value: Any) -> None:
    kind, within, name = field.metadata["kind"], field.metadata["within"], field.name
    if value is None and field.default is None:
        return
    if kind == "choice":
        good, allowed = isinstance(value, str) and value in within, f"one of {', '.join(within)}"
    elif kind in ("number", "float"):
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        good, allowed = good and within[0] <= value <= within[1], f"a number {_range(*within)}"
        if good and not in_float32(value):
            good, allowed = False, "a number that float32 can tell from 0 and from infinity"
    elif kind == "int":
        good = isinstance(value, int) and not isinstance(value, bool) and within[0] <= value <= within[1]
        allowed = f"a whole number {_range(*within)}"
    elif kind == "flag":
        good, allowed = isinstance(value, bool), "True or False"
    elif kind == "size":
        good = isinstance(value, tuple) and len(value) == 2 and all(type(x) is int and x > 0 for x in value)
        allowed = "(height, width) in pixels"
    elif kind == "colours":
        good = isinstance(value, tuple) and all(isinstance(x, str) for x in value)
        allowed = "names of colours"
    elif kind == "picture":
        good, allowed = isinstance(value, str | Path | Image.Image | np.ndarray), "a path, a picture or an array"
    else:
        good, allowed = isinstance(value, str), "a text"
    if not good:
        raise ConfigError(f"{name} = {value!r}; it must be {allowed}")


def _range(low: float | int, high: float | int) -> str:
    if high == math.inf:
        return "" if low == -math.inf else "above 0" if 0 < low < 1e-300 else f"of at least {low:g}"
    return f"in [{low:g}, {high:g}]"


def _contradictions(settings: Sequence[Options]) -> None:
    """ConfigError for an option that has no effect in any setting, or excludes another."""
    o = settings[0]  # settings differ in numbers alone

    def need(condition: bool, name: str, what: str) -> None:
        for setting in settings:
            if getattr(setting, name) != FIELDS[name].default and not condition:
                raise ConfigError(f"{name} = {getattr(setting, name)!r} {what}")

    def pointless(name: str, value: int, condition: bool, why: str) -> None:
        if condition and all(getattr(setting, name) == value for setting in settings):
            raise ConfigError(f"{name} = {value} {why}")

    started = o.init_image is not None or o.init_noise is not None
    decays, framed = any(s.lr_decay != 1 for s in settings), any(s.edge != 0 for s in settings)
    need(o.size is None, "aspect", f"beside size = {o.size}: give one of them")
    need(o.size is None, "scale", f"beside size = {o.size}: give one of them")
    need(o.init_image is None, "init_noise", "beside init_image: a painting starts from one of them")
    need(started, "init_weight", "pulls to a start: give init_image or init_noise")
    need(started, "init_pixels", "pulls to a start: give init_image or init_noise")
    need(o.latents != "straight", "temperature", "is of codes' probabilities: choose latents = soft or gumbel")
    need(o.latents != "straight", "temperature_end", "is of codes' probabilities: choose latents = soft or gumbel")
    need(decays, "lr_decay_at", "says when lr_decay begins: give lr_decay")
    need(o.cut_method == "crops", "cut_power", "sizes crops: choose cut_method = crops")
    need(o.cut_method == "crops", "cut_min", "sizes crops: choose cut_method = crops")
    need(framed, "edge_colour", "is of the frame: give its weight, edge")
    need(framed, "edge_width", "is of the frame: give its weight, edge")
    pointless("edge_width", 0, framed, "leaves the frame, which edge weighs, without a pixel")
    pointless("lr_decay_at", 1, decays, "is after the last step: lr_decay would never begin")
    sized = any(setting.cut_power != 1 for setting in settings)
    pointless("cut_min", 1, sized, "makes every cut the whole shorter side: cut_power would size nothing")
    need(bool(o.palette), "palette_weight", "is of a palette: give palette")
    need(o.aesthetic is not None, "aesthetic_weight", "is of a head: give aesthetic")
    need(o.memory is None, "micro_cuts", "beside memory, which chooses it: give one of them")
    need(o.memory is None, "remat", "beside memory, which chooses it: give one of them")
    if o.micro_cuts and o.cuts % o.micro_cuts:
        raise ConfigError(f"micro_cuts = {o.micro_cuts} does not divide cuts = {o.cuts}")
    if o.aspect is not None:
        aspect(o.aspect)
    for name in (o.edge_colour, *o.palette):
        rgb(name)
