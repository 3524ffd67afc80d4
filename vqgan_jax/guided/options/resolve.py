"""All options of a painting, resolved from the values that a user gives."""

import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train_jax import options as schema
from train_jax.errors import ConfigError, in_float32
from vqgan_jax.guided import drawers
from vqgan_jax.guided.options import presets
from vqgan_jax.guided.options.canvas import IMAGE_OPTIONS, Canvas, DrawnStart, Enlarge, RepeatedOverlay, Start
from vqgan_jax.guided.options.cutouts import Augmentations, Crops, Cutouts, WideCuts
from vqgan_jax.guided.options.drawing import Drawing, Latents, Probabilities, make_drawer
from vqgan_jax.guided.options.filters import Lookup, Sharpen, Tile, Wallpaper
from vqgan_jax.guided.options.group import Group, differs_from_default, refuse_unknown, to_python
from vqgan_jax.guided.options.losses import Aesthetic, Appearance, Border, CustomLosses, Palette, Prior, Style, Vignette
from vqgan_jax.guided.options.schedule import QUALITIES, AutoStop, Memory, Optimization, RateDecay, RateDrops, Schedule


@dataclasses.dataclass(frozen=True)
class Options:
    """Resolved options of a painting; None: a disabled group. Created by `resolve`."""

    schedule: Schedule
    preset: presets.Preset | None
    drawing: Drawing | None
    canvas: Canvas
    repeated_overlay: RepeatedOverlay | None
    start: Start | None
    drawn_start: DrawnStart | None
    latents: Latents | None
    probabilities: Probabilities | None
    optimization: Optimization
    rate_decay: RateDecay | None
    rate_drops: RateDrops | None
    auto_stop: AutoStop | None
    cutouts: Cutouts
    crops: Crops | None
    wide_cuts: WideCuts | None
    augmentations: Augmentations
    appearance: Appearance
    border: Border | None
    vignette: Vignette | None
    palette: Palette | None
    aesthetic: Aesthetic | None
    prior: Prior | None
    style: Style | None
    custom_losses: CustomLosses | None
    wallpaper: Wallpaper | None
    lookup: Lookup | None
    tile: Tile | None
    sharpen: Sharpen | None
    enlarge: Enlarge | None
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
        values |= {"size": values["size"] and list(values["size"])}
        values |= {name: list(values[name]) for name in ("palette", "lr_drops", "lookup", "tile")}
        values |= {"losses": [str(loss) for loss in values["losses"]]}
        return values | {"drawer_options": _to_json(values["drawer_options"])}


def add_later_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds options that the version that wrote `values` did not have, at their defaults, which are what it did."""
    return _DEFAULTS | dict(values)


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
    is_enabled = {name: any(_is_enabled(group, values) for values in completed) for name, group in GROUPS.items()}
    for group in (GROUPS[name] for name, enabled in is_enabled.items() if not enabled):
        for values, field in itertools.product(completed, dataclasses.fields(group)):
            if differs_from_default(field, values[name := field.name]):
                raise ConfigError(
                    f"{name} = {values[name]!r} has no effect: give {group.describe_needs()}, or leave {name} out"
                )
    cuts, micro_cuts = completed[0]["cuts"], completed[0]["micro_cuts"]
    if micro_cuts and cuts % micro_cuts:
        raise ConfigError(f"micro_cuts = {micro_cuts} does not divide cuts = {cuts}")
    if any(values["cut_power"] != 1 for values in completed) and all(values["cut_min"] == 1 for values in completed):
        raise ConfigError("cut_min = 1 makes every crop the whole shorter side: cut_power has no effect; leave one out")
    if completed[0]["overlay_every"] and completed[0]["overlay"] is None:
        raise ConfigError(f"overlay_every = {completed[0]['overlay_every']} has no effect: name the picture by overlay")
    late = [step for step in completed[0]["lr_drops"] if step >= completed[0]["steps"]]
    if late:
        raise ConfigError(f"lr_drops = {late[0]} has no effect: it must be below steps = {completed[0]['steps']}")
    if completed[0]["overlay_every"] and any(values["stop_after"] for values in completed):
        raise ConfigError("stop_after beside overlay_every: each overlay begins a new descent; leave one of them out")
    _check_wide_cuts(completed)
    if completed[0]["prior"] is not None and completed[0]["enlarge"] != 1:
        raise ConfigError(f"enlarge = {completed[0]['enlarge']}: the prior models pictures of one size; leave one out")
    if completed[0]["drawer"] != "vqgan":
        _check_drawer(completed)
    return [
        Options(**{name: _make_group(name, values) if enabled else None for name, enabled in is_enabled.items()})
        for values in completed
    ]


def _is_enabled(group: type[Group], values: Mapping[str, Any]) -> bool:
    """Returns whether the values of all options, by flat name, enable the group."""
    return not group.needs or any(
        values[name] in enabling if enabling else differs_from_default(FIELDS[name], values[name])
        for name, enabling in group.needs.items()
    )


def _make_group(name: str, values: Mapping[str, Any]) -> Group:
    return GROUPS[name](**{field.name: values[field.name] for field in dataclasses.fields(GROUPS[name])})


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Parses each option and completes the options with presets and defaults."""
    refuse_unknown(options, FIELDS, "an option")
    options = presets.apply(options)
    options = {name: _parse_option(name, value) for name, value in options.items()}
    if options.get("drawer", "vqgan") != "vqgan":
        options["drawer_options"] = vars(make_drawer(options["drawer"], options.get("drawer_options") or {}))
    return _DEFAULTS | QUALITIES[options.get("quality", "normal")] | options


def _check_wide_cuts(completed: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for wide cutouts that are none, and for sizes of other cutouts if all are wide."""
    cuts = completed[0]["cuts"]
    for wide in (values["wide"] for values in completed if values["wide"]):
        if completed[0]["cut_method"] != "crops":
            raise ConfigError(f"wide = {wide:g}: cut_method = pooling always shows the whole picture; leave it out")
        if not round(wide * cuts):
            raise ConfigError(f"wide = {wide:g} of {cuts} cutouts is none; it must be at least {1 / cuts:g}")
    sizes = [name for name in ("cut_power", "cut_min") if any(values[name] != _DEFAULTS[name] for values in completed)]
    if sizes and all(round(values["wide"] * cuts) == cuts for values in completed):
        raise ConfigError(f"wide = {completed[0]['wide']:g} makes all cutouts wide: {sizes[0]} has no effect; leave one out")


def _check_drawer(completed: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for options that mean nothing to a drawer."""
    name = completed[0]["drawer"]
    if completed[0]["prior"] is not None:
        raise ConfigError(f"prior = {completed[0]['prior']}: it models the codes of a VQGAN, and drawer = {name} has none")
    weights = [values["sparsity"] for values in completed if values["sparsity"]]
    if weights and drawers.find(name).regularise is None:
        raise ConfigError(f"sparsity = {weights[0]:g}: drawer = {name} has no penalty of detail; leave it out")


def _parse_option(name: str, value: Any) -> Any:
    """Checks and converts the value of an option."""
    value = schema.parse_value(FIELDS[name], to_python(value), name)
    if isinstance(value, float) and not in_float32(value):
        raise ConfigError(f"{name} = {value!r}; it must be a number that float32 does not round to 0 or infinity")
    return value


def _to_json(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return values and {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
