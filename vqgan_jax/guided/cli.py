"""Command lines `vqgan-jax paint`, `vqgan-jax drawers`, `vqgan-jax presets` and `vqgan-jax direction`.

Arguments of a painting come from flags, a config file, or the metadata of a painted PNG.
"""

import argparse
import dataclasses
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_jax import arguments as arguments_lib
from train_jax.errors import ConfigError, UserError
from vqgan_jax.guided import curves, video
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.options import presets

EXAMPLES = """\
examples:
  vqgan-jax paint "a red star | noise:-0.3" --vqgan runs/vqgan-shapes --clip runs/clip-shapes --out star.png
  vqgan-jax paint "a castle" --vqgan DIR --clip DIR --size 256x384 --quality best --video castle.mp4 --out castle.png
  vqgan-jax paint @prompts.txt --vqgan DIR --clip DIR --n 2 --out grid.png --folder pictures
  vqgan-jax paint "a seed ^ a tree" --vqgan DIR --clip DIR --frames 60 --zoom 1.02 --video story.mp4 --out last.png
  vqgan-jax paint "the sea" --vqgan DIR --clip DIR --frames 90 --zoom "1.02+0.01*sin(t)" --video sea.mp4 --out last.png
  vqgan-jax paint "an oil painting" --vqgan DIR --clip DIR --steps 20 --video-in cat.mp4 --video painted.mp4 --out last.png
  vqgan-jax paint "a robot" --clip DIR --drawer grid --drawer-options cells=24,shape=hex,colours=black,red --out robot.png
  vqgan-jax paint "a sticker of a fox" --clip DIR --drawer strokes --drawer-options ground=transparent --out fox.png
  vqgan-jax paint "a lighthouse" --clip DIR --preset stained-glass --out window.png
  vqgan-jax paint --repeat star.png --out again.png
  vqgan-jax paint --config options.yaml --lr 0.2 --out out.png
  vqgan-jax paint --explore "a fox" --clip DIR --grid drawer=pixel,fourier --grid lr=0.05,0.1,0.2 --out sheet.png

A prompt is text:weight:stop | image=FILE:weight | noise=SEED:weight | direction=FILE:weight. A negative weight maximises
the distance. Below its stop a part has no gradient. ^ separates the scenes of an animation. \\ escapes | ^ : = and itself.
After them a part may have a place, :place=left half, :place=0.1,0.2,0.5,0.6 or :mask=FILE; a weight may have keyframes,
(0:1, 100:0), which are steps and weights, or be an expression in an animation, (0.5+sound); :from=STEP and :until=STEP say
when a part begins and ends.
--drawer names what is optimised instead of a VQGAN's latents; vqgan-jax drawers lists all with their options.
The same seed gives the same image. Every PNG contains its options as metadata, and --repeat reproduces it."""

# Arguments besides the options of `guided.options`, with their defaults.
_RUN_DEFAULTS = {"prompts": [], "vqgan": None, "clip": [], "clip_weights": None, "dtype": "auto", "seed": 0, "n": 1}
def _parse_curve(text: str) -> float | str:
    """Parses a number. Other texts are keyframes or expressions, which `guided.Motion` parses."""
    try:
        return float(text)
    except ValueError:
        return text


_MOVES = ("zoom", "turn", "right", "down")
_MOTION_OPTIONS = {
    "frames": (int, "number of frames of each scene; enables animation"),
    "frame_steps": (int, "number of optimisation steps per frame (default 10)"),
    "blend": (int, "number of frames of the cross-fade at the end of a scene (default 10, or all but one)"),
    "zoom": (_parse_curve, "magnification per frame (default 1)"),
    "turn": (_parse_curve, "rotation per frame in degrees, counter-clockwise (default 0)"),
    "right": (_parse_curve, "shift to the right per frame, as a fraction of the width (default 0)"),
    "down": (_parse_curve, "shift downwards per frame, as a fraction of the height (default 0)"),
    "loop": (int, "number of frames at the end that lead back to the first one (default 0: none)"),
    "video_in": (str, "video, or folder of pictures, each of which is the start of a frame; enables animation"),
    "pull": (float, "with --video-in, weight of the squared distance to the frame painted before (default 1)"),
    "sound": (str, ".wav file, whose loudness at a frame expressions know as sound, in [0, 1]"),
    "hold": (float, "with --video-in, weight of the squared distance to its picture (default 0)"),
}
_CURVES = """\
zoom, turn, right and down are numbers, keyframes of frames "(0:1, 30:1.05)", or expressions such as "1.02+0.01*sin(t)", of
the seconds t, the frames n and the loudness sound, with + - * / % **, """ + ", ".join(curves.FUNCTIONS)
_VIDEO_STEPS = 5  # default of --save-every with --video: number of steps between frames


def add(command_parser: Callable) -> None:
    """Adds the commands of paintings to `vqgan-jax`. `command_parser` is returned by `train_jax.command.parser`."""
    sub = command_parser("paint", "Paint images from prompts by the gradient of CLIP (VQGAN+CLIP).", _paint)
    unset = argparse.SUPPRESS  # unset arguments are absent, which distinguishes them from explicit defaults
    sub.add_argument(
        "prompts", nargs="*", metavar="PROMPT", default=unset, help="prompts, or @FILE with one prompt per line"
    )
    sub.add_argument("--vqgan", default=unset, metavar="MODEL", help="model that vqgan_jax.load opens")
    sub.add_argument(
        "--clip", default=unset, metavar="MODEL", action="append", help="model that clip_jax.load opens; repeatable"
    )
    sub.add_argument(
        "--clip-weights", default=unset, type=_parse_floats, metavar="W,W", help="weights of the CLIPs (default: equal)"
    )
    arguments_lib.add_dtype(sub, default=unset)
    sub.add_argument("--seed", type=int, default=unset, help="random seed of the first image of a prompt (default 0)")
    sub.add_argument("--n", type=int, default=unset, help="number of images per prompt (default 1)")
    sub.add_argument("--out", required=True, metavar="FILE", help="output .png: the image, or a grid of several images")
    sub.add_argument("--folder", metavar="FOLDER", help="output folder for the individual images")
    text = "output .mp4, .webm or .gif, or a folder of PNGs (no suffix): snapshots of the painting, or the animation"
    sub.add_argument("--video", metavar="FILE", help=text)
    text = f"frames per second of the video, and of the time t in expressions (default {video.FPS})"
    sub.add_argument("--fps", type=float, help=text)
    sub.add_argument("--preview", metavar="FILE", help="output .png for intermediate images")
    sub.add_argument("--state", metavar="FILE", help="output .npz for the state, from which --resume continues")
    sub.add_argument("--resume", metavar="FILE", help="state file to continue from; a video starts there")
    text = "paint all combinations of --grid as one sheet; their commands are printed, and written beside it as .txt"
    sub.add_argument("--explore", action="store_true", help=text)
    text = "an option and its values, separated by commas, or by ; where a value has commas; repeatable"
    sub.add_argument("--grid", metavar="NAME=V,V", action="append", help=text)
    text = "YAML file with prompts, vqgan, clip, clip_weights, dtype, seed, n, grid and the options below; flags override it"
    sub.add_argument("--config", metavar="FILE", help=text)
    sub.add_argument("--repeat", metavar="FILE", help="painted .png to reproduce, with the other images of its batch")
    motion = sub.add_argument_group("animation", _CURVES)
    metavars = {int: "N", float: "N", str: "FILE", _parse_curve: "CURVE"}
    for name, (parser, text) in _MOTION_OPTIONS.items():
        motion.add_argument(_flag(name), type=parser, default=unset, metavar=metavars[parser], help=text)
    for group in options_lib.GROUPS.values():
        _add_group(sub, group)
    text = "Save the direction from some sentences to others, for prompts with direction=FILE."
    direction = command_parser("direction", text, _save_direction)
    direction.add_argument("--clip", required=True, metavar="MODEL", action="append", help="as in paint; repeatable")
    for name, role in (("from", "starts"), ("to", "ends")):
        text = f"sentences where the direction {role}, or @FILE with one per line"
        direction.add_argument(f"--{name}", required=True, nargs="+", dest=role, metavar="TEXT", help=text)
    arguments_lib.add_dtype(direction)
    direction.add_argument("--out", required=True, metavar="FILE", help="output .npz")
    command_parser("presets", "List the presets of vqgan-jax paint, with their options.", _list_presets)
    command_parser("drawers", "List the drawers of vqgan-jax paint, with their options.", _list_drawers)


def _add_group(parser: argparse.ArgumentParser, group: type[options_lib.Group]) -> None:
    """Adds the options of a group as an argument group."""
    needs = group.describe_needs()
    arguments = parser.add_argument_group(f"options: {group.__doc__}", f"only with {needs}" if needs else None)
    for name, default, text in group.documentation(""):
        if default not in (None, 0, ()):
            text += f" (default {default})"
        if isinstance(default, bool):
            arguments.add_argument(_flag(name), action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        parse, metavar = _parser_and_metavar(name)
        arguments.add_argument(
            _flag(name), dest=name, type=parse, default=argparse.SUPPRESS, metavar=metavar, help=text.replace("%", "%%"),
            action="extend" if name == "losses" else "store",
        )  # fmt: skip


def _flag(name: str) -> str:
    return "--loss" if name == "losses" else f"--{name.replace('_', '-')}"


def _parse_names(text: str) -> tuple[str, ...]:
    """Parses names separated by commas."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} contains no name")
    return names


def _parse_tile(text: str) -> tuple[int, int]:
    """Parses rows and columns such as 2x3."""
    rows, x, columns = text.lower().partition("x")
    if not (rows.isdigit() and x and columns.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: write rows and columns of copies, such as 2x2")
    return int(rows), int(columns)


def _parse_floats(text: str) -> list[float]:
    """Parses numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: must be numbers separated by commas") from error


def _parse_ints(text: str) -> tuple[int, ...]:
    """Parses integers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: must be integers separated by commas") from error


# Parsers and metavars of options whose defaults do not determine how strings are parsed.
_PARSERS_AND_METAVARS = {
    "size": (arguments_lib.size, "HxW"),
    "aspect": (str, "W:H"),
    "init_image": (str, "FILE"),
    "overlay": (str, "FILE"),
    "aesthetic": (str, "FILE"),
    "style": (str, "FILE"),
    "style_network": (str, "FILE"),
    "prior": (str, "DIR"),
    "palette": (_parse_names, "COLOURS"),
    "losses": (_parse_names, "MODULE:FUNCTION"),
    "edge_colour": (str, "COLOUR"),
    "lr_drops": (_parse_ints, "N,N"),
    "vignette_colour": (str, "COLOUR"),
    "lookup": (_parse_names, "COLOURS"),
    "tile": (_parse_tile, "ROWSxCOLUMNS"),
    "memory": (float, "GIB"),
    "drawer_options": (str, "NAME=VALUE,…"),
}


def _parser_and_metavar(name: str) -> tuple[Callable[[str], Any], str]:
    """Returns the parser of an option's string, and its metavar."""
    default = options_lib.FIELDS[name].default
    if name in _PARSERS_AND_METAVARS:
        return _PARSERS_AND_METAVARS[name]
    if type(default) in (int, float):
        return type(default), "N"
    return str, "NAME"


def make_flags(options: Mapping[str, Any]) -> list[str]:
    """Makes the words of a command line that state options."""
    words = []
    for name, value in options.items():
        if name in ("size", "tile"):
            value = f"{value[0]}x{value[1]}"
        elif isinstance(value, Mapping):
            value = ",".join(f"{key}={part}" for key, part in value.items())
        elif isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if value is not False:
            words += [_flag(name)] if value is True else [_flag(name), str(value)]
    return words


# Parsers of strings in a config file, by option.
_STRING_PARSERS = {"seed": int, "n": int, "clip_weights": _parse_floats}
_STRING_PARSERS |= {name: number_type for name, (number_type, _) in _MOTION_OPTIONS.items()}
_STRING_PARSERS |= {name: _parser_and_metavar(name)[0] for name in options_lib.FIELDS}

# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PaintRequest:
    """Arguments of a painting.

    Attributes:
      run: values with the names of `_RUN_DEFAULTS`.
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
    names = {**_RUN_DEFAULTS, **_MOTION_OPTIONS, **options_lib.FIELDS}
    values = {name: stated[name] for name in names if name in stated and stated[name] != []}
    only, grid = None, _parse_grid(arguments.grid or [])
    if arguments.repeat:
        conflicting = ["grid"] if grid else ["explore"] if arguments.explore else []
        conflicting += sorted(values.keys() - {"vqgan", "clip"}) + (["config"] if arguments.config else [])
        if conflicting:
            argument = "a PROMPT" if conflicting[0] == "prompts" else _flag(conflicting[0])
            raise UserError(f"--repeat reproduces an image: {argument} would change the result; leave it out")
        saved, only, grid = _read_painted(arguments.repeat)
        values = saved | values
    elif arguments.config:
        from_file = _read_config(arguments.config)
        grid = _check_grid(arguments.config, from_file.pop("grid", {})) | grid
        options_lib.refuse_unknown(from_file, names, f"an option (in {arguments.config})")
        values = from_file | values
    run = _RUN_DEFAULTS | {name: values[name] for name in _RUN_DEFAULTS if name in values}
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
        raise UserError(f"{_flag(name)} beside a grid of {name}: give only one of them")
    request = PaintRequest(run, options, {name: values[name] for name in _MOTION_OPTIONS if name in values}, only, grid)
    drawers = {presets.apply(cell).get("drawer", "vqgan") for cell in request.cells}
    if "vqgan" not in drawers and run["vqgan"]:
        raise UserError(f"--vqgan {run['vqgan']}: the drawer {', '.join(drawers)} uses no VQGAN; leave it out")
    for name, argument in (("prompts", "a prompt"), ("vqgan", "--vqgan MODEL"), ("clip", "--clip MODEL")):
        if not run[name] and (name != "vqgan" or "vqgan" in drawers):
            needed = "one prompt, one VQGAN (or another --drawer) and one CLIP"
            raise UserError(f"{argument} is missing: paint needs at least {needed}")
    motion = request.motion
    if motion and not motion.keys() & {"frames", "video_in"}:
        flag = _flag(next(iter(motion)))
        raise UserError(f"{flag} applies to animations only: set the number of frames of a scene by --frames")
    if motion and _needs_rate(motion, run["prompts"]):
        fps = values.get("fps", arguments.fps or video.FPS)
        if arguments.fps not in (None, fps):
            raise UserError(f"--repeat reproduces an animation of {fps:g} frames per second: leave --fps out")
        motion["fps"] = fps
    return request


def _parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parses NAME=VALUE,VALUE. Raises UserError for unknown names and invalid values."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(f"--grid {text}: it must be NAME=VALUE,VALUE")
        options_lib.refuse_unknown([name], options_lib.FIELDS, "an option (in --grid)")
        if name in grid:
            raise UserError(f"--grid {name} is given twice: write all its values once")
        parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
        grid[name] = [_parse_text("--grid", name, part) for part in parts]
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

    texts = [motion[name] for name in _MOVES if isinstance(motion.get(name), str)]
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
    motion_names = {**_MOTION_OPTIONS, "fps": None}
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
    return _parse_text(path, name, value) if isinstance(value, str) and name in _STRING_PARSERS else value


def _parse_text(path: str, name: str, value: str) -> Any:
    """Parses the text of an option in `path`. Raises UserError for invalid ones."""
    if isinstance(options_lib.FIELDS.get(name) and options_lib.FIELDS[name].default, bool):
        if value not in ("true", "false"):
            raise UserError(f"{path}: {name} = {value!r}; it must be true or false")
        return value == "true"
    try:
        return _STRING_PARSERS[name](value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: {name}: {error}") from error
    except ValueError as error:
        expected = "an integer" if _STRING_PARSERS[name] is int else "a number"
        raise UserError(f"{path}: {name} = {value!r}; it must be {expected}") from error


def validate(request: PaintRequest, outputs: Sequence[str | None]) -> dict[str, str]:
    """Validates a request before models are loaded, and hashes its input files.

    Args:
      outputs: paths of the output files.

    Returns the SHA-256 of each input file, as `metadata.hash_files`.
    """
    from vqgan_jax.guided import animation, painting, stopping, targets
    from vqgan_jax.guided.prompts import parse, parse_scene

    run, cells = request.run, [options_lib.resolve(options) for options in request.cells]
    painting.check_request(run["seed"], run["n"], run["prompts"])
    targets.resolve_clip_weights(run["clip_weights"], len(run["clip"]))
    parsed = [(parse if request.motion else parse_scene)(prompt) for prompt in run["prompts"]]
    if not request.motion:
        for scene, options in itertools.product(parsed, cells):
            stopping.settled_step(scene, options)
    else:
        motion, scenes = animation.Motion(**request.motion), parsed[0]
        animation.check_time(motion, scenes)
        if motion.frames is not None:
            motion.by_frame(len(scenes))
            animation.expression_weights(scenes, motion)
    files = _hash_files(request)
    output_paths = {Path(path).resolve() for path in outputs if path}
    for path in files:
        if Path(path).resolve() in output_paths:
            raise UserError(f"{path} is an input file: choose another output file")
    return files


def _paint(arguments: argparse.Namespace) -> int:
    """Runs the command `paint`."""
    out = arguments_lib.png(arguments.out, "the image")
    if arguments.preview:
        arguments_lib.png(arguments.preview, "the preview", "--preview")
    outputs = {name: getattr(arguments, name) for name in ("out", "video", "preview", "state", "folder")}
    if arguments.video and not Path(arguments.video).suffix:
        del outputs["video"]  # a folder, checked below
    arguments_lib.check_outputs(**outputs)
    if arguments.video:
        video.check(arguments.video, video.FPS if arguments.fps is None else arguments.fps)
    elif arguments.fps is not None:
        raise UserError(f"--fps {arguments.fps:g} applies to videos only: name the video file by --video")
    try:
        request = parse_request(arguments)
        if arguments.video and not request.motion and not arguments.repeat:
            request.options.setdefault("save_every", _VIDEO_STEPS)
        if request.options.get("losses"):  # as python -m does: a user's module is in the working folder
            sys.path.append(os.getcwd())
        outputs = [getattr(arguments, name) for name in ("out", "video", "preview", "state")]
        if request.grid:
            outputs.append(str(_commands_file(arguments.out)))
            if f"@{outputs[-1]}" in (getattr(arguments, "prompts", None) or ()):
                raise UserError(f"{outputs[-1]}, into which --explore writes commands, is an input: choose another --out")
        files = validate(request, outputs)
        if request.motion and not arguments.video and not arguments.repeat:
            flag = "--video-in" if "video_in" in request.motion else "--frames"
            raise UserError(f"{flag} creates an animation: name the video file by --video")
        vq, clips = _load_models(request, arguments.repeat, files)
        run = _run_exploration if request.grid else _run_animation if request.motion else run_painting
        run(arguments, request, vq, clips, make_metadata(request, vq, clips, files))
    except (ConfigError, FloatingPointError) as error:
        raise UserError(str(error)) from error
    print(f"wrote {out}{f' and {arguments.video}' if arguments.video else ''}", file=sys.stderr)
    return 0


def _load_models(request: PaintRequest, repeat: str | None, files: Mapping[str, str]):
    """Loads the models. With `repeat`, raises UserError if models or input files differ from the metadata."""
    import clip_jax
    import vqgan_jax
    from vqgan_jax.guided import metadata

    vq = request.run["vqgan"] and vqgan_jax.load(request.run["vqgan"], dtype=request.run["dtype"])
    clips = [clip_jax.load(path, dtype=request.run["dtype"]) for path in request.run["clip"]]
    if repeat:
        fields = metadata.read(repeat)
        expected = [model["sha256"] for model in (fields["vqgan"], *fields["clips"]) if model]
        actual = [model.fingerprint for model in (vq, *clips) if model]
        if actual != expected:
            raise UserError(
                f"{repeat} was painted with weights of SHA-256 {', '.join(x[:12] for x in expected)}; the SHA-256 of "
                f"these models is {', '.join(x[:12] for x in actual)}. Name the original models by --vqgan and --clip"
            )
        metadata.check_unchanged(files, fields["files"], repeat)
    return vq, clips


def _hash_files(request: PaintRequest) -> dict[str, str]:
    """Hashes the input files of a request."""
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.prompts import parse

    scenes = [scene for prompt in request.run["prompts"] for scene in parse(prompt)]
    hashes = {}
    for options in map(options_lib.resolve, request.cells):
        hashes |= metadata.hash_files(options, scenes)
        hashes |= {options.prior.prior: metadata.hash_run(options.prior.prior)} if options.prior else {}
    for name in ("video_in", "sound"):
        if name in request.motion:
            hashes |= metadata.hash_frames(request.motion[name])
    return hashes


def make_metadata(request: PaintRequest, vq, clips, files: Mapping[str, str]) -> dict[str, Any]:
    """Creates the metadata of a PNG."""
    run = request.run
    grid = {"grid": {"values": request.grid, "beside": request.options}} if request.grid else {}
    return grid | {
        "prompts": run["prompts"],
        "seed": run["seed"],
        "n": run["n"],
        "clip_weights": run["clip_weights"],
        "dtype": vq.compute.dtype if vq else clips[0].dtype,
        "vqgan": vq and {"path": run["vqgan"], "sha256": vq.fingerprint},
        "clips": [{"path": p, "sha256": c.fingerprint} for p, c in zip(run["clip"], clips, strict=True)],
        "files": files,
        "motion": request.motion,
        "only": request.only,
        "options": options_lib.resolve(request.cells[0]).to_json(),
    }


def run_painting(
    arguments, request: PaintRequest, vq, clips, fields: dict[str, Any], preview: Callable | None = None
) -> None:
    """Paints images and writes the outputs.

    Args:
      fields: metadata of the images.
      preview: as in `guided.paint`; None: writes the file `arguments.preview`, if it is set.
    """
    from PIL import Image

    from train_jax.pictures import enlarged_grid, image_grid
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.colour import over_white
    from vqgan_jax.guided.painting import paint

    n, prompts = request.run["n"], request.run["prompts"]

    def group_by_prompt(images) -> list[list]:
        """Groups images into one row per prompt."""
        return [list(images[i : i + n]) for i in range(0, len(images), n)]

    def make_sheet(images) -> Image.Image:
        """Returns the only image, or a grid with one row per prompt, in which what is transparent is white."""
        return Image.fromarray(images[0]) if len(images) == 1 else enlarged_grid(group_by_prompt(over_white(images)))

    def write_preview(step, images, losses) -> None:
        make_sheet(images).save(arguments.preview)

    painting = paint(
        vq, clips, prompts, seed=request.run["seed"], n=n, clip_weights=request.run["clip_weights"],
        resume_from=arguments.resume, state_file=arguments.state,
        preview=preview or (write_preview if arguments.preview else None), **request.options,
    )  # fmt: skip
    selection = slice(None) if request.only is None else slice(request.only, request.only + 1)
    metadata.save(make_sheet(painting.images[selection]), arguments.out, fields)
    if arguments.folder:
        folder = Path(arguments.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(painting.images):
            # The image alone would be painted by another program with other rounding, so metadata contain the batch.
            image_fields = fields | {"only": index if len(painting.images) > 1 else None}
            metadata.save(Image.fromarray(image), folder / f"{index // n:04d}-{index % n:04d}.png", image_fields)
    if arguments.video:
        snapshots = over_white(painting.snapshots[selection])
        frames = [image_grid(group_by_prompt(snapshots[:, i])) for i in range(snapshots.shape[1])]
        video.write(arguments.video, frames, arguments.fps or video.FPS)


def _run_animation(arguments, request: PaintRequest, vq, clips, fields: dict[str, Any]) -> None:
    """Paints an animation and writes the outputs."""
    from PIL import Image

    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.animation import Motion, animate
    from vqgan_jax.guided.colour import over_white

    if len(request.run["prompts"]) > 1 or request.run["n"] != 1:
        raise UserError("an animation has one prompt, with scenes separated by ^, and one image: leave out --n")
    for name in ("state", "resume", "folder"):
        if getattr(arguments, name):
            raise UserError(f"--{name} applies to images, not to animations: leave it out")
    preview = arguments.preview
    animation = animate(
        vq, clips, request.run["prompts"][0], motion=Motion(**request.motion), seed=request.run["seed"],
        clip_weights=request.run["clip_weights"],
        preview=preview and (lambda index, image: Image.fromarray(image).save(preview)), **request.options,
    )  # fmt: skip
    metadata.save(Image.fromarray(animation.frames[-1]), arguments.out, fields)
    if arguments.video:
        fps = arguments.fps or request.motion.get("fps", video.FPS)
        video.write(arguments.video, list(over_white(animation.frames)), fps)


def _run_exploration(arguments, request: PaintRequest, vq, clips, fields: dict[str, Any]) -> None:
    """Paints all combinations of a grid, and writes their sheet and their commands."""
    from train_jax.pictures import enlarged_grid
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.exploration import explore, make_rows

    run, out = request.run, Path(arguments.out)
    if request.motion or run["n"] != 1:
        raise UserError("--explore paints one image of each combination: leave out --n and the options of animations")
    for name in ("state", "resume", "folder", "video", "preview"):
        if getattr(arguments, name):
            raise UserError(f"--{name} applies to one painting, not to the sheet of --explore: leave it out")
    explored = explore(
        vq, clips, run["prompts"], request.grid, seed=run["seed"], clip_weights=run["clip_weights"], **request.options
    )
    commands, sheet = [], []
    for y, row in enumerate(make_rows(explored, request.grid)):
        sheet.append([explored.images[place] for place in row])
        for x, (prompt, cell) in enumerate(row):
            name = out.with_name(f"{out.stem}-{y + 1}-{x + 1}.png")
            words = _make_command(run, run["prompts"][prompt], explored.cells[cell], str(name))
            loss = explored.losses[prompt, cell]
            commands.append(f"# row {y + 1}, column {x + 1}: loss {loss:.4f}\n{shlex.join(words)}\n")
    print("".join(commands), end="")
    _commands_file(arguments.out).write_text("".join(commands), "utf-8")
    metadata.save(enlarged_grid(sheet), out, fields)


def _commands_file(out: str) -> Path:
    """Returns the file of the commands of a sheet."""
    return Path(out).with_suffix(".txt")


def _make_command(run: Mapping[str, Any], prompt: str, options: Mapping[str, Any], out: str) -> list[str]:
    """Makes the command line of one painting."""
    from vqgan_jax.guided import exploration

    words = ["vqgan-jax", "paint", prompt]
    words += ["--vqgan", run["vqgan"]] if exploration.uses_vqgan(options) else []
    for clip in run["clip"]:
        words += ["--clip", clip]
    words += [] if run["clip_weights"] is None else ["--clip-weights", ",".join(map(str, run["clip_weights"]))]
    words += [] if run["dtype"] == "auto" else ["--dtype", run["dtype"]]
    return [*words, "--seed", str(run["seed"]), *make_flags(options), "--out", out]


def _save_direction(arguments: argparse.Namespace) -> int:
    """Runs the command `direction`."""
    import clip_jax
    from vqgan_jax.guided import directions

    start, end = (arguments_lib.lines(sentences, "a sentence") for sentences in (arguments.starts, arguments.ends))
    clips = [clip_jax.load(path, dtype=arguments.dtype) for path in arguments.clip]
    directions.save(arguments.out, clips, start, end)
    print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


def _list_drawers(arguments: argparse.Namespace) -> int:
    """Runs the command `drawers`."""
    from vqgan_jax.guided import drawers
    from vqgan_jax.guided.drawers.drawer import Drawer

    for name in drawers.TABLE:
        drawer = drawers.find(name)
        print(f"{name:10}{drawer.__doc__.splitlines()[0]}")
        if name == "vqgan":  # whose options are those of paint
            continue
        for option, default, text in drawer.documentation(""):
            shown = ",".join(default) if isinstance(default, tuple) else default
            print(f"          {option}={str(shown).lower()}  {text}")
        if drawer.regularise is not Drawer.regularise:
            penalty = drawer.regularise.__doc__.splitlines()[0].rstrip(".")
            print(f"          --sparsity  weight of the {penalty[0].lower()}{penalty[1:]}")
    return 0


def _list_presets(arguments: argparse.Namespace) -> int:
    """Runs the command `presets`."""
    for name, look in presets.TABLE.items():
        print(f"{name:14}{look.text}\n              {shlex.join(make_flags(look.options))}")
    return 0
