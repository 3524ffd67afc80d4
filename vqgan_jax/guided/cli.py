"""`vqgan-jax paint`. Its arguments come from the table of options, a config file, or the metadata of a painted PNG."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_jax import arguments as arguments_lib
from train_jax.errors import ConfigError, UserError
from vqgan_jax.guided import options as options_lib

EXAMPLES = """\
examples:
  vqgan-jax paint "a red star | noise:-0.3" --vqgan runs/vqgan-shapes --clip runs/clip-shapes --out star.png
  vqgan-jax paint "a castle" --vqgan DIR --clip DIR --size 256x384 --quality best --video castle.mp4 --out castle.png
  vqgan-jax paint @prompts.txt --vqgan DIR --clip DIR --n 2 --out grid.png --folder pictures
  vqgan-jax paint "a seed ^ a tree" --vqgan DIR --clip DIR --frames 60 --zoom 1.02 --video story.mp4 --out last.png
  vqgan-jax paint --repeat star.png --out again.png
  vqgan-jax paint --config options.yaml --lr 0.2 --out out.png

A prompt is text:weight:stop | text:weight | image=FILE:weight | noise=SEED:weight. A negative weight pushes away, below its
stop a part no longer pulls, ^ stands between the scenes of a story, and \\ before one of | ^ : = makes it a letter.
The same seed gives the same picture. Every PNG tells how it was painted, and --repeat paints it again."""

# Arguments besides the options of `guided.options`, with their defaults.
_RUN_DEFAULTS = {"prompts": [], "vqgan": None, "clip": [], "clip_weights": None, "seed": 0, "n": 1}
_MOTION = {
    "frames": (int, "frames of each scene: makes an animation"),
    "frame_steps": (int, "steps of the optimiser in a frame (default 10)"),
    "blend": (int, "frames at the end of a scene in which the next one comes in (default 10, if the scene is longer)"),
    "zoom": (float, "magnification from frame to frame (default 1)"),
    "turn": (float, "degrees a frame, counter-clockwise (default 0)"),
    "right": (float, "share of the width that the picture moves to the right in a frame (default 0)"),
    "down": (float, "share of the height that the picture moves down in a frame (default 0)"),
}
_VIDEO_STEPS = 5  # between a video's frames, unless --save-every says otherwise
_FPS = 15


def add(command_parser: Callable) -> None:
    """Adds the command to `vqgan-jax`; `command_parser` as `train_jax.command.parser` gives it."""
    sub = command_parser("paint", "Paint what a sentence says, by the gradient of CLIP.", _paint)
    unset = argparse.SUPPRESS  # so that defaults differ from values that were stated
    sub.add_argument("prompts", nargs="*", metavar="PROMPT", default=unset, help="prompts, or @FILE with one a line")
    sub.add_argument("--vqgan", default=unset, metavar="MODEL", help="any model that vqgan_jax.load opens")
    sub.add_argument(
        "--clip", default=unset, metavar="MODEL", action="append", help="any model that clip_jax.load opens; may be repeated"
    )
    sub.add_argument(
        "--clip-weights", default=unset, type=_parse_floats, metavar="W,W", help="of the CLIPs (default: equal)"
    )
    sub.add_argument("--seed", type=int, default=unset, help="of the first picture of a prompt (default 0)")
    sub.add_argument("--n", type=int, default=unset, help="pictures of each prompt (default 1)")
    sub.add_argument("--out", required=True, metavar="FILE", help="the picture, or the grid of several, a .png")
    sub.add_argument("--folder", metavar="FOLDER", help="write each picture by itself, too")
    sub.add_argument("--video", metavar="FILE", help="how it was painted, or the animation: a .mp4 or .gif")
    sub.add_argument("--fps", type=float, default=_FPS, help=f"frames a second of the video (default {_FPS})")
    sub.add_argument("--preview", metavar="FILE", help="a .png to show the picture in as it is painted")
    sub.add_argument("--state", metavar="FILE", help="an .npz to keep the state in as it is painted")
    sub.add_argument("--resume", metavar="FILE", help="a state to go on from; a video shows what follows it")
    text = "a .yaml with prompts, vqgan, clip, clip_weights, seed, n, and options below; the command line overrides it"
    sub.add_argument("--config", metavar="FILE", help=text)
    sub.add_argument("--repeat", metavar="FILE", help="a painted .png to paint again, with all that was painted beside it")
    motion = sub.add_argument_group("animation")
    for name, (number, text) in _MOTION.items():
        motion.add_argument(_flag(name), type=number, default=unset, metavar="N", help=text)
    for group in options_lib.GROUPS.values():
        _add_group(sub, group)


def _add_group(parser: argparse.ArgumentParser, group: type[options_lib.Group]) -> None:
    needs = group.switches()
    arguments = parser.add_argument_group(f"options: {group.__doc__}", f"only with {needs}" if needs else None)
    for name, default, text in group.documentation(""):
        if default not in (None, 0, ()):
            text += f" (default {default})"
        if isinstance(default, bool):
            arguments.add_argument(_flag(name), action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        reader, metavar = _syntax(name)
        arguments.add_argument(
            _flag(name), type=reader, default=argparse.SUPPRESS, metavar=metavar, help=text.replace("%", "%%")
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _parse_floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers separated by commas") from error


# Options whose defaults do not tell how their texts are read: readers and metavars.
_SYNTAX = {
    "size": (arguments_lib.size, "HxW"),
    "aspect": (str, "W:H"),
    "init_image": (str, "FILE"),
    "overlay": (str, "FILE"),
    "aesthetic": (str, "FILE"),
    "palette": (_parse_names, "COLOURS"),
    "edge_colour": (str, "COLOUR"),
    "memory": (float, "GIB"),
}


def _syntax(name: str) -> tuple[Callable[[str], Any], str]:
    """The function that reads an option's text, and its metavar."""
    default = options_lib.FIELDS[name].default
    if name in _SYNTAX:
        return _SYNTAX[name]
    if type(default) in (int, float):
        return type(default), "N"
    return str, "NAME"


# Functions that read texts of a config file, by option.
_READERS = {"seed": int, "n": int, "clip_weights": _parse_floats}
_READERS |= {name: number for name, (number, _) in _MOTION.items()}
_READERS |= {name: _syntax(name)[0] for name in options_lib.FIELDS}

# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PaintRequest:
    """The arguments of a painting: `run` with the names of `_RUN_DEFAULTS`, options of the picture and of its motion.

    Attributes:
      only: index of the single picture that is kept of those painted together; None: all are kept.
    """

    run: dict[str, Any]
    options: dict[str, Any]
    motion: dict[str, Any]
    only: int | None = None


def parse_request(arguments: argparse.Namespace) -> PaintRequest:
    """The request of a command line, with its config file or painted PNG.

    Raises UserError or ConfigError for options that are unknown or contradict each other.
    """
    stated = vars(arguments)
    names = {**_RUN_DEFAULTS, **_MOTION, **options_lib.FIELDS}
    values = {name: stated[name] for name in names if name in stated and stated[name] != []}
    only = None
    if arguments.repeat:
        extra = sorted(values.keys() - {"vqgan", "clip"}) + (["config"] if arguments.config else [])
        if extra:
            argument = "a PROMPT" if extra[0] == "prompts" else _flag(extra[0])
            raise UserError(f"--repeat paints the same again: {argument} would make it another picture; leave it out")
        saved, only = _read_painted(arguments.repeat)
        values = saved | values
    elif arguments.config:
        from_file = _read_config(arguments.config)
        options_lib.refuse_unknown(from_file, names, f"option (in {arguments.config})")
        values = from_file | values
    run = _RUN_DEFAULTS | {name: values[name] for name in _RUN_DEFAULTS if name in values}
    for name in ("prompts", "clip"):
        run[name] = [run[name]] if isinstance(run[name], str) else run[name]
        if not isinstance(run[name], list) or not all(isinstance(text, str) for text in run[name]):
            raise UserError(f"{name} = {run[name]!r}; it must be a text, or a list of texts")
    if not isinstance(run["vqgan"], str | None):
        raise UserError(f"vqgan = {run['vqgan']!r}; it must be a text")
    if not arguments.repeat:  # metadata hold prompts, never @FILE
        run["prompts"] = arguments_lib.lines(run["prompts"], "a prompt")
    for name, argument in (("prompts", "a prompt"), ("vqgan", "--vqgan MODEL"), ("clip", "--clip MODEL")):
        if not run[name]:
            raise UserError(f"say what to paint, and with which models: {argument} is missing")
    motion = {name: values[name] for name in _MOTION if name in values}
    if motion and "frames" not in motion:
        raise UserError(f"{_flag(next(iter(motion)))} is of an animation: say by --frames how many frames a scene has")
    return PaintRequest(run, {name: values[name] for name in options_lib.FIELDS if name in values}, motion, only)


def _read_painted(path: str) -> tuple[dict[str, Any], int | None]:
    """The arguments of a painted PNG, and its index if others were painted beside it."""
    from vqgan_jax.guided import metadata

    about = metadata.read(path)
    models = {"vqgan": about["vqgan"]["path"], "clip": [clip["path"] for clip in about["clips"]]}
    run = {name: about[name] for name in ("prompts", "clip_weights", "seed", "n")}
    options = about["options"]
    options_lib.refuse_unknown(options, options_lib.FIELDS, f"option of this version (in {path})")
    options_lib.refuse_unknown(about["motion"], _MOTION, f"motion of this version (in {path})")
    for name in options_lib.FIELDS.keys() - options.keys():
        raise UserError(f"{path} does not tell {name}: it was painted by another version")
    if about["motion"]:
        options = {name: value for name, value in options.items() if name != "save_every"}
    return run | models | options | about["motion"], about["only"]


def _read_config(path: str) -> dict[str, Any]:
    import yaml

    from train_jax.data.files import read_text

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must hold options as name: value, not a {type(values).__name__}")
    return {name: _parse_yaml_value(path, name, value) for name, value in values.items()}


def _parse_yaml_value(path: str, name: str, value: Any) -> Any:
    """Reads a text as the command line would: for YAML, 1e-3 and 256x384 are texts."""
    if name == "aspect" and isinstance(value, int | float):
        raise UserError(f"{path}: YAML reads the aspect as the number {value}; write it in quotes, such as '16:9'")
    if not isinstance(value, str) or name not in _READERS:
        return value
    try:
        return _READERS[name](value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: {name}: {error}") from error
    except ValueError as error:
        expected = "a whole number" if _READERS[name] is int else "a number"
        raise UserError(f"{path}: {name} = {value!r}; it must be {expected}") from error


def _validate(request: PaintRequest, outputs: Sequence[str | None]) -> dict[str, str]:
    """Checks a request before any model is loaded, and hashes the files that it names.

    Args:
      outputs: files that will be written.

    Returns the SHA-256 of each file, as `metadata.file_hashes`.
    """
    from vqgan_jax.guided import animation, painting, targets
    from vqgan_jax.guided.prompts import parse, single

    run = request.run
    options_lib.resolve(request.options)
    painting.check_request(run["seed"], run["n"], run["prompts"])
    targets.resolve_clip_weights(run["clip_weights"], len(run["clip"]))
    for prompt in run["prompts"]:
        (parse if request.motion else single)(prompt)
    if request.motion:
        animation.Motion(**request.motion)
    files = _file_hashes(request)
    written = {Path(path).resolve() for path in outputs if path}
    for path in files:
        if Path(path).resolve() in written:
            raise UserError(f"{path} is a picture to paint from: write to another file")
    return files


def _paint(arguments: argparse.Namespace) -> int:
    from vqgan_jax.guided import video

    out = arguments_lib.png(arguments.out, "the picture")
    if arguments.preview:
        arguments_lib.png(arguments.preview, "the preview", "--preview")
    outputs = ("out", "video", "preview", "state", "folder")
    arguments_lib.check_outputs(**{name: getattr(arguments, name) for name in outputs})
    if arguments.video:
        video.check(arguments.video, arguments.fps)
    elif arguments.fps != _FPS:
        raise UserError(f"--fps {arguments.fps:g} is of a video: name it by --video")
    try:
        request = parse_request(arguments)
        if arguments.video and not request.motion and not arguments.repeat:
            request.options.setdefault("save_every", _VIDEO_STEPS)
        files = _validate(request, [getattr(arguments, name) for name in ("out", "video", "preview", "state")])
        if request.motion and not arguments.video and not arguments.repeat:
            raise UserError("--frames makes an animation: name its file by --video")
        vq, clips = _load_models(request, arguments.repeat, files)
        run = _run_animation if request.motion else _run_painting
        run(arguments, request, vq, clips, out, _about(request, vq, clips, files))
    except (ConfigError, FloatingPointError) as error:
        raise UserError(str(error)) from error
    print(f"wrote {out}{f' and {arguments.video}' if arguments.video else ''}", file=sys.stderr)
    return 0


def _load_models(request: PaintRequest, repeat: str | None, files: Mapping[str, str]):
    import clip_jax
    import vqgan_jax
    from vqgan_jax.guided import metadata

    vq = vqgan_jax.load(request.run["vqgan"])
    clips = [clip_jax.load(path) for path in request.run["clip"]]
    if repeat:
        about = metadata.read(repeat)
        expected = [about["vqgan"]["sha256"], *(clip["sha256"] for clip in about["clips"])]
        actual = [vq.fingerprint, *(clip.fingerprint for clip in clips)]
        if actual != expected:
            raise UserError(
                f"{repeat} was painted by weights of SHA-256 {', '.join(x[:12] for x in expected)}; these have "
                f"{', '.join(x[:12] for x in actual)}. Name the right ones by --vqgan and --clip"
            )
        metadata.check_unchanged(files, about["files"], repeat)
    return vq, clips


def _file_hashes(request: PaintRequest) -> dict[str, str]:
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.prompts import parse

    scenes = [scene for prompt in request.run["prompts"] for scene in parse(prompt)]
    return metadata.file_hashes(options_lib.resolve(request.options), scenes)


def _about(request: PaintRequest, vq, clips, files: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a PNG."""
    run = request.run
    return {
        "prompts": run["prompts"],
        "seed": run["seed"],
        "n": run["n"],
        "clip_weights": run["clip_weights"],
        "vqgan": {"path": run["vqgan"], "sha256": vq.fingerprint},
        "clips": [{"path": p, "sha256": c.fingerprint} for p, c in zip(run["clip"], clips, strict=True)],
        "files": files,
        "motion": request.motion,
        "only": request.only,
        "options": options_lib.resolve(request.options).to_json(),
    }


def _run_painting(arguments, request: PaintRequest, vq, clips, out: Path, about: dict[str, Any]) -> None:
    from PIL import Image

    from train_jax.pictures import enlarged_grid, image_grid
    from vqgan_jax.guided import metadata, video
    from vqgan_jax.guided.painting import paint

    n, prompts = request.run["n"], request.run["prompts"]

    def rows(images) -> list[list]:
        """The images of each prompt."""
        return [list(images[i : i + n]) for i in range(0, len(images), n)]

    def sheet(images) -> Image.Image:
        return Image.fromarray(images[0]) if len(images) == 1 else enlarged_grid(rows(images))

    preview = arguments.preview
    painting = paint(
        vq, clips, prompts, seed=request.run["seed"], n=n, clip_weights=request.run["clip_weights"],
        resume_from=arguments.resume, state_file=arguments.state,
        preview=preview and (lambda step, images, losses: sheet(images).save(preview)), **request.options,
    )  # fmt: skip
    selection = slice(None) if request.only is None else slice(request.only, request.only + 1)
    metadata.save(sheet(painting.images[selection]), out, about)
    if arguments.folder:
        folder = Path(arguments.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(painting.images):
            # Alone, by another program, it would be painted with other rounding: its metadata name all that were painted.
            about_image = about | {"only": index if len(painting.images) > 1 else None}
            metadata.save(Image.fromarray(image), folder / f"{index // n:04d}-{index % n:04d}.png", about_image)
    if arguments.video:
        snapshots = painting.snapshots[selection]
        frames = [image_grid(rows(snapshots[:, i])) for i in range(snapshots.shape[1])]
        video.write(arguments.video, frames, arguments.fps)


def _run_animation(arguments, request: PaintRequest, vq, clips, out: Path, about: dict[str, Any]) -> None:
    from PIL import Image

    from vqgan_jax.guided import metadata, video
    from vqgan_jax.guided.animation import Motion, animate

    if len(request.run["prompts"]) > 1 or request.run["n"] != 1:
        raise UserError("an animation has one prompt, of scenes separated by ^, and one picture: leave out --n")
    for name in ("state", "resume", "folder"):
        if getattr(arguments, name):
            raise UserError(f"--{name} is of pictures, not of an animation: leave it out")
    preview = arguments.preview
    animation = animate(
        vq, clips, request.run["prompts"][0], motion=Motion(**request.motion), seed=request.run["seed"],
        clip_weights=request.run["clip_weights"],
        preview=preview and (lambda index, image: Image.fromarray(image).save(preview)), **request.options,
    )  # fmt: skip
    metadata.save(Image.fromarray(animation.frames[-1]), out, about)
    if arguments.video:
        video.write(arguments.video, list(animation.frames), arguments.fps)
