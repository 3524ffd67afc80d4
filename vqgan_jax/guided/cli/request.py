"""What is to be painted, from flags, a config file, or the metadata of a painted PNG."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from train_jax import arguments as arguments_lib
from train_jax.errors import UserError
from vqgan_jax.guided import curves, video
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.cli.flags import MOTION_OPTIONS, MOVES, RUN_DEFAULTS, STRING_PARSERS, parse_text, to_flag
from vqgan_jax.guided.options import presets


@dataclasses.dataclass(frozen=True)
class PaintRequest:
    """Arguments of a painting.

    Attributes:
      run: values with the names of `RUN_DEFAULTS`.
      options: options of `guided.options`.
      motion: arguments of `guided.Motion`; empty for images.
      only: index of the only image of the batch to write; None: all images.
      grid: options and their values, of which all combinations are painted; empty: one painting.
    """

    run: dict[str, Any]
    options: dict[str, Any]
    motion: dict[str, Any]
    only: int | None = None
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The options of each painting."""
        from vqgan_jax.guided import exploration

        return [self.options | cell for cell in exploration.combine(self.grid)] if self.grid else [self.options]


def parse_request(arguments: argparse.Namespace) -> PaintRequest:
    """Collects the request from the command line and its config file or painted PNG.

    Raises UserError or ConfigError for unknown or contradictory options.
    """
    stated = vars(arguments)
    names = {**RUN_DEFAULTS, **MOTION_OPTIONS, **options_lib.FIELDS}
    values = {name: stated[name] for name in names if name in stated and stated[name] != []}
    only, grid, texts = None, {}, arguments.grid or []
    if arguments.repeat:
        conflicting = ["grid"] if texts else ["explore"] if arguments.explore else []
        conflicting += sorted(values.keys() - {"vqgan", "clip"}) + (["config"] if arguments.config else [])
        if conflicting:
            argument = "a PROMPT" if conflicting[0] == "prompts" else to_flag(conflicting[0])
            raise UserError(f"--repeat reproduces an image: {argument} would change the result; leave it out")
        saved, only, grid = _read_painted(arguments.repeat)
        values = saved | values
    elif arguments.config:
        from_file = _read_config(arguments.config)
        grid = _check_grid(arguments.config, from_file.pop("grid", {}))
        options_lib.refuse_unknown(from_file, names, f"an option (in {arguments.config})")
        values = from_file | values
    grid = grid | _parse_grid(texts, bool(values.get("vqgan")))
    run = RUN_DEFAULTS | {name: values[name] for name in RUN_DEFAULTS if name in values}
    for name in ("prompts", "clip"):
        run[name] = [run[name]] if isinstance(run[name], str) else run[name]
        if not isinstance(run[name], list) or not all(isinstance(text, str) for text in run[name]):
            raise UserError(f"{name} = {run[name]!r}; it must be a string, or a list of strings")
    if not isinstance(run["vqgan"], str | None):
        raise UserError(f"vqgan = {run['vqgan']!r}; it must be a string")
    if run["dtype"] not in arguments_lib.DTYPES:
        raise UserError(f"dtype = {run['dtype']!r}; it must be one of {', '.join(arguments_lib.DTYPES)}")
    if not arguments.repeat:  # metadata contain expanded prompts, never @FILE
        run["prompts"] = arguments_lib.lines(run["prompts"], "a prompt")
    if bool(grid) != arguments.explore and not arguments.repeat:
        raise UserError("--explore paints the combinations of --grid NAME=VALUE,VALUE: give both, or neither of them")
    options = {name: values[name] for name in options_lib.FIELDS if name in values}
    for name in options.keys() & grid.keys():
        raise UserError(f"{to_flag(name)} beside a grid of {name}: give only one of them")
    request = PaintRequest(run, options, {name: values[name] for name in MOTION_OPTIONS if name in values}, only, grid)
    drawers = {presets.apply(cell).get("drawer", "vqgan") for cell in request.cells}
    if "vqgan" not in drawers and run["vqgan"]:
        raise UserError(f"--vqgan {run['vqgan']}: the drawer {', '.join(drawers)} uses no VQGAN; leave it out")
    for name, argument in (("prompts", "a prompt"), ("vqgan", "--vqgan MODEL"), ("clip", "--clip MODEL")):
        if not run[name] and (name != "vqgan" or "vqgan" in drawers):
            needed = "one prompt, one VQGAN (or another --drawer) and one CLIP"
            raise UserError(f"{argument} is missing: paint needs at least {needed}")
    motion = request.motion
    if motion and not motion.keys() & {"frames", "video_in"}:
        flag = to_flag(next(iter(motion)))
        raise UserError(f"{flag} applies to animations only: set the number of frames of a scene by --frames")
    if motion and _needs_rate(motion, run["prompts"]):
        fps = values.get("fps", arguments.fps or video.FPS)
        if arguments.fps not in (None, fps):
            raise UserError(f"--repeat reproduces an animation of {fps:g} frames per second: leave --fps out")
        motion["fps"] = fps
    return request


def _parse_grid(texts: Sequence[str], with_vqgan: bool) -> dict[str, list[Any]]:
    """Parses NAME=VALUE,VALUE, or NAME,NAME of options at their usual values.

    Raises UserError for unknown names and invalid values.
    """
    from vqgan_jax.guided import exploration

    grid: dict[str, list[Any]] = {}
    for text in texts:
        names, equals, values = text.partition("=")
        names = [name.strip().replace("-", "_") for name in ([names] if equals else names.split(","))]
        if not all(names):
            raise UserError(f"--grid {text}: it must be NAME=VALUE,VALUE, or NAME,NAME")
        options_lib.refuse_unknown(names, options_lib.FIELDS, "an option (in --grid)")
        parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
        for name in names:
            if name in grid:
                raise UserError(f"--grid {name} is given twice: write all its values once")
            stated = [parse_text("--grid", name, part) for part in parts] if equals else None
            grid[name] = stated or exploration.usual_values(name, with_vqgan)
    return grid


def _check_grid(path: str, grid: Any) -> dict[str, list[Any]]:
    """Checks the grid of a config file. Raises UserError for what is no mapping of options to lists."""
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) for values in grid.values()):
        raise UserError(f"{path}: grid = {grid!r}; it must be a mapping of options to lists of values")
    options_lib.refuse_unknown(grid, options_lib.FIELDS, f"an option (in the grid of {path})")
    return {name: [_parse_yaml_value(path, name, value) for value in values] for name, values in grid.items()}


def _needs_rate(motion: Mapping[str, Any], prompts: Sequence[str]) -> bool:
    """Returns whether an animation depends on the frames per second."""
    from vqgan_jax.guided.prompts import parse

    texts = [motion[name] for name in MOVES if isinstance(motion.get(name), str)]
    texts += [part.expression for scene in parse(prompts[0]) for part in scene if part.expression]
    return "video_in" in motion or any(curves.parse(text).names & {"t", "sound"} for text in texts)


def _read_painted(path: str) -> tuple[dict[str, Any], int | None, dict[str, list[Any]]]:
    """Reads the arguments of a painted PNG, its index in the batch (None: the whole batch), and the grid of a sheet."""
    from vqgan_jax.guided import metadata

    fields = metadata.read(path)
    models = {"vqgan": fields["vqgan"] and fields["vqgan"]["path"], "clip": [clip["path"] for clip in fields["clips"]]}
    run = {name: fields[name] for name in ("prompts", "clip_weights", "dtype", "seed", "n")}
    options = options_lib.add_later_options(fields["options"])
    options_lib.refuse_unknown(options, options_lib.FIELDS, f"an option of this version (in {path})")
    motion_names = {**MOTION_OPTIONS, "fps": None}
    options_lib.refuse_unknown(fields["motion"], motion_names, f"a motion option of this version (in {path})")
    if fields["motion"]:
        options = {name: value for name, value in options.items() if name != "save_every"}
    if "grid" in fields:  # whose combinations complete the options that were given
        return run | models | fields["grid"]["beside"], None, fields["grid"]["values"]
    return run | models | options | fields["motion"], fields["only"], {}


def _read_config(path: str) -> dict[str, Any]:
    """Reads the options of a YAML file."""
    import yaml

    from train_jax.data.files import read_text

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a mapping of options (name: value), not a {type(values).__name__}")
    return {name: _parse_yaml_value(path, name, value) for name, value in values.items()}


def _parse_yaml_value(path: str, name: str, value: Any) -> Any:
    """Parses strings as the command line does, because YAML reads 1e-3 and 256x384 as strings."""
    if name == "aspect" and isinstance(value, int | float):
        raise UserError(f"{path}: YAML reads the aspect as the number {value}; write it in quotes, such as '16:9'")
    return parse_text(path, name, value) if isinstance(value, str) and name in STRING_PARSERS else value
