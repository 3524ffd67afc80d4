"""Flags of `vqgan-jax paint`: their parsers, and the words that state options."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from train_jax import arguments as arguments_lib
from train_jax.errors import UserError
from vqgan_jax.guided import curves, video
from vqgan_jax.guided import options as options_lib

# Arguments besides the options of `guided.options`, with their defaults.
RUN_DEFAULTS = {"prompts": [], "vqgan": None, "clip": [], "clip_weights": None, "dtype": "auto", "seed": 0, "n": 1}


def _parse_curve(text: str) -> float | str:
    """Parses a number. Other texts are keyframes or expressions, which `guided.Motion` parses."""
    try:
        return float(text)
    except ValueError:
        return text


MOVES = ("zoom", "turn", "right", "down")  # options of motion that may change in time
MOTION_OPTIONS = {
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


def add_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags of `paint` to its parser."""
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
    sub.add_argument("--preview", metavar="FILE", help="output .png for intermediate images; -: this terminal")
    sub.add_argument("--state", metavar="FILE", help="output .npz for the state, from which --resume continues")
    sub.add_argument("--resume", metavar="FILE", help="state file to continue from; a video starts there")
    text = "paint all combinations of --grid as one sheet; their commands are printed, and written beside it as .txt"
    sub.add_argument("--explore", action="store_true", help=text)
    text = "an option and its values, separated by commas, or ; where a value has commas; or NAME,NAME: usual values"
    sub.add_argument("--grid", metavar="NAME=V,V", action="append", help=f"{text}; repeatable")
    text = "YAML file with prompts, vqgan, clip, clip_weights, dtype, seed, n, grid and the options below; flags override it"
    sub.add_argument("--config", metavar="FILE", help=text)
    sub.add_argument("--repeat", metavar="FILE", help="painted .png to reproduce, with the other images of its batch")
    motion = sub.add_argument_group("animation", _CURVES)
    metavars = {int: "N", float: "N", str: "FILE", _parse_curve: "CURVE"}
    for name, (parser, text) in MOTION_OPTIONS.items():
        motion.add_argument(to_flag(name), type=parser, default=unset, metavar=metavars[parser], help=text)
    for group in options_lib.GROUPS.values():
        _add_group(sub, group)
    for name, reason in options_lib.ABSENT.items():
        sub.add_argument(to_flag(name), action=_Refuse, nargs="?", const=reason, default=unset, help=unset)


class _Refuse(argparse.Action):
    """A flag that is refused with the reason `const`."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise argparse.ArgumentError(None, f"{option_string}: {self.const}")


def _add_group(parser: argparse.ArgumentParser, group: type[options_lib.Group]) -> None:
    """Adds the options of a group as an argument group."""
    needs = group.describe_needs()
    arguments = parser.add_argument_group(f"options: {group.__doc__}", f"only with {needs}" if needs else None)
    for name, default, text in group.documentation(""):
        if default not in (None, 0, ()):
            text += f" (default {default})"
        if isinstance(default, bool):
            arguments.add_argument(to_flag(name), action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        parse, metavar = _parser_and_metavar(name)
        arguments.add_argument(
            to_flag(name), dest=name, type=parse, default=argparse.SUPPRESS, metavar=metavar, help=text.replace("%", "%%"),
            action="extend" if name == "losses" else "store",
        )  # fmt: skip


def to_flag(name: str) -> str:
    """Returns the flag of an option."""
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
    "init_dalle": (str, "DIR"),
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
            words += [to_flag(name)] if value is True else [to_flag(name), str(value)]
    return words


# Parsers of strings in a config file, by option.
STRING_PARSERS = {"seed": int, "n": int, "clip_weights": _parse_floats}
STRING_PARSERS |= {name: number_type for name, (number_type, _) in MOTION_OPTIONS.items()}
STRING_PARSERS |= {name: _parser_and_metavar(name)[0] for name in options_lib.FIELDS}


def parse_text(path: str, name: str, value: str) -> Any:
    """Parses the text of an option in `path`. Raises UserError for invalid ones."""
    if isinstance(options_lib.FIELDS.get(name) and options_lib.FIELDS[name].default, bool):
        if value not in ("true", "false"):
            raise UserError(f"{path}: {name} = {value!r}; it must be true or false")
        return value == "true"
    try:
        return STRING_PARSERS[name](value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: {name}: {error}") from error
    except ValueError as error:
        expected = "an integer" if STRING_PARSERS[name] is int else "a number"
        raise UserError(f"{path}: {name} = {value!r}; it must be {expected}") from error
