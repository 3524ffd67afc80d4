"""`vqgan-jax paint`. Its arguments are made from the table of options; a config file and a painted PNG give the same."""

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

# What is said about a painting besides the options of `guided.options`.
_RUN = {"prompts": [], "vqgan": None, "clip": [], "clip_weights": None, "seed": 0, "n": 1}
_MOTION = {
    "frames": (int, "frames of each scene: makes an animation"),
    "frame_steps": (int, "steps of the optimiser in a frame (default 10)"),
    "blend": (int, "frames at the end of a scene in which the next one comes in (default 10, if the scene is longer)"),
    "zoom": (float, "size of things, relative to the frame before (default 1)"),
    "turn": (float, "degrees a frame, counter-clockwise (default 0)"),
    "right": (float, "share of the width that things move to the right in a frame (default 0)"),
    "down": (float, "share of the height that things move down in a frame (default 0)"),
}
_VIDEO_STEPS = 5  # between a video's frames, unless --save-every says otherwise
_FPS = 15


def add(command_parser: Callable) -> None:
    """Adds the command to `vqgan-jax`; `command_parser` as `train_jax.command.parser` gives it."""
    sub = command_parser("paint", "Paint what a sentence says, by the gradient of CLIP.", _paint)
    later = argparse.SUPPRESS  # so that what was not said can be told from what was
    sub.add_argument("prompts", nargs="*", metavar="PROMPT", default=later, help="prompts, or @FILE with one a line")
    sub.add_argument("--vqgan", default=later, metavar="MODEL", help="any model that vqgan_jax.load opens")
    sub.add_argument(
        "--clip", default=later, metavar="MODEL", action="append", help="any model that clip_jax.load opens; may be repeated"
    )
    sub.add_argument("--clip-weights", default=later, type=_numbers, metavar="W,W", help="of the CLIPs (default: alike)")
    sub.add_argument("--seed", type=int, default=later, help="of the first picture of a prompt (default 0)")
    sub.add_argument("--n", type=int, default=later, help="pictures of each prompt (default 1)")
    sub.add_argument("--out", required=True, metavar="FILE", help="the picture, or the grid of several, a .png")
    sub.add_argument("--folder", metavar="FOLDER", help="write each picture by itself, too")
    sub.add_argument("--video", metavar="FILE", help="how it was painted, or the animation: a .mp4 or .gif")
    sub.add_argument("--fps", type=float, default=_FPS, help=f"frames a second of the video (default {_FPS})")
    sub.add_argument("--preview", metavar="FILE", help="a .png to show the picture in as it is painted")
    sub.add_argument("--state", metavar="FILE", help="an .npz to keep the state in as it is painted")
    sub.add_argument("--resume", metavar="FILE", help="a state to go on from; a video shows what follows it")
    said = "a .yaml that says prompts, vqgan, clip, clip_weights, seed, n, and options below; the command line overrides it"
    sub.add_argument("--config", metavar="FILE", help=said)
    sub.add_argument("--repeat", metavar="FILE", help="a painted .png to paint again, with all that was painted beside it")
    motion = sub.add_argument_group("animation")
    for name, (kind, text) in _MOTION.items():
        motion.add_argument(_flag(name), type=kind, default=later, metavar="N", help=text)
    group = sub.add_argument_group("options", "All of them may stand in a config file, too.")
    for name, field in options_lib.FIELDS.items():
        _add_option(group, name, field)


def _add_option(group, name: str, field: dataclasses.Field) -> None:
    kind, text, within = (field.metadata[key] for key in ("kind", "help", "within"))
    if kind == "flag":
        group.add_argument(_flag(name), action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if kind == "choice":
        text += f": {', '.join(within)}"
    if field.default not in (None, 0, ()):
        text += f" (default {field.default})"
    metavar = "HxW" if kind == "size" else kind.upper()
    group.add_argument(
        _flag(name), type=_TYPES.get(kind, str), default=argparse.SUPPRESS, metavar=metavar, help=text.replace("%", "%%")
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _texts(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers separated by commas") from error


_TYPES = {"number": float, "float": float, "int": int, "size": arguments_lib.size, "colours": _texts}
# How texts of a config file are read, by name.
_READERS = {"seed": int, "n": int, "clip_weights": _numbers}
_READERS |= {name: kind for name, (kind, _) in _MOTION.items()}
_READERS |= {name: _TYPES.get(field.metadata["kind"], str) for name, field in options_lib.FIELDS.items()}

# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be painted: `run` as `_RUN` names it, options of the picture, and of its motion.

    Attributes:
      only: the number of the one picture that is kept of those painted together, if it is one.
    """

    run: dict[str, Any]
    options: dict[str, Any]
    motion: dict[str, Any]
    only: int | None = None


def order(arguments: argparse.Namespace) -> Order:
    """From the command line, a config file, or a painted PNG. UserError or ConfigError for what is unknown or at odds."""
    said = vars(arguments)
    names = {**_RUN, **_MOTION, **options_lib.FIELDS}
    given = {name: said[name] for name in names if name in said and said[name] != []}
    only = None
    if arguments.repeat:
        extra = sorted(given.keys() - {"vqgan", "clip"}) + (["config"] if arguments.config else [])
        if extra:
            what = "a PROMPT" if extra[0] == "prompts" else _flag(extra[0])
            raise UserError(f"--repeat paints the same again: {what} would make it another picture; leave it out")
        found, only = _repeated(arguments.repeat)
        given = found | given
    elif arguments.config:
        found = _config(arguments.config)
        options_lib.refuse_unknown(found, names, f"option (in {arguments.config})")
        given = found | given
    run = _RUN | {name: given[name] for name in _RUN if name in given}
    for name in ("prompts", "clip"):
        run[name] = [run[name]] if isinstance(run[name], str) else run[name]
        if not isinstance(run[name], list) or not all(isinstance(text, str) for text in run[name]):
            raise UserError(f"{name} = {run[name]!r}; it must be a text, or a list of texts")
    if not isinstance(run["vqgan"], str | None):
        raise UserError(f"vqgan = {run['vqgan']!r}; it must be a text")
    if not arguments.repeat:  # what was painted tells each prompt as it is
        run["prompts"] = arguments_lib.lines(run["prompts"], "a prompt")
    for name, what in (("prompts", "a prompt"), ("vqgan", "--vqgan MODEL"), ("clip", "--clip MODEL")):
        if not run[name]:
            raise UserError(f"say what to paint, and with which models: {what} is missing")
    motion = {name: given[name] for name in _MOTION if name in given}
    if motion and "frames" not in motion:
        raise UserError(f"{_flag(next(iter(motion)))} is of an animation: say by --frames how many frames a scene has")
    return Order(run, {name: given[name] for name in options_lib.FIELDS if name in given}, motion, only)


def _repeated(path: str) -> tuple[dict[str, Any], int | None]:
    """What was said of a painted picture, and its number if others were painted beside it."""
    from vqgan_jax.guided import metadata

    about = metadata.read(path)
    models = {"vqgan": about["vqgan"]["path"], "clip": [clip["path"] for clip in about["clips"]]}
    told = {name: about[name] for name in ("prompts", "clip_weights", "seed", "n")}
    options = about["options"]
    options_lib.refuse_unknown(options, options_lib.FIELDS, f"option of this version (in {path})")
    options_lib.refuse_unknown(about["motion"], _MOTION, f"motion of this version (in {path})")
    for name in options_lib.FIELDS.keys() - options.keys():
        raise UserError(f"{path} does not tell {name}: it was painted by another version")
    if about["motion"]:
        options = {name: value for name, value in options.items() if name != "save_every"}
    return told | models | options | about["motion"], about["only"]


def _config(path: str) -> dict[str, Any]:
    import yaml

    from train_jax.data.files import read_text

    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} must hold options as name: value, not a {type(found).__name__}")
    return {name: _said(path, name, value) for name, value in found.items()}


def _said(path: str, name: str, value: Any) -> Any:
    """A text of a config file as the command line would read it: YAML takes 1e-3 and 256x384 for texts."""
    if name == "aspect" and isinstance(value, int | float):
        raise UserError(f"{path}: YAML reads the aspect as the number {value}; write it in quotes, such as '16:9'")
    if not isinstance(value, str) or name not in _READERS:
        return value
    try:
        return _READERS[name](value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: {name}: {error}") from error
    except ValueError as error:
        what = "a whole number" if _READERS[name] is int else "a number"
        raise UserError(f"{path}: {name} = {value!r}; it must be {what}") from error


def _checked(wanted: Order, outputs: Sequence[str | None]) -> dict[str, str]:
    """Refuses what can be before any model is loaded; the files to paint from, with their hashes as they are now.

    `outputs`: files that will be written.
    """
    from vqgan_jax.guided import animation, painting, targets
    from vqgan_jax.guided.prompts import parse, single

    run = wanted.run
    options_lib.resolve(wanted.options)
    painting.check(run["seed"], run["n"], run["prompts"])
    targets.shares(run["clip_weights"], len(run["clip"]))
    for prompt in run["prompts"]:
        (parse if wanted.motion else single)(prompt)
    if wanted.motion:
        animation.Motion(**wanted.motion)
    files = _files(wanted)
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
        wanted = order(arguments)
        if arguments.video and not wanted.motion and not arguments.repeat:
            wanted.options.setdefault("save_every", _VIDEO_STEPS)
        files = _checked(wanted, [getattr(arguments, name) for name in ("out", "video", "preview", "state")])
        if wanted.motion and not arguments.video and not arguments.repeat:
            raise UserError("--frames makes an animation: name its file by --video")
        vq, clips = _models(wanted, arguments.repeat, files)
        draw = _animated if wanted.motion else _painted
        draw(arguments, wanted, vq, clips, out, _about(wanted, vq, clips, files))
    except (ConfigError, FloatingPointError) as error:
        raise UserError(str(error)) from error
    print(f"wrote {out}{f' and {arguments.video}' if arguments.video else ''}", file=sys.stderr)
    return 0


def _models(wanted: Order, repeat: str | None, files: Mapping[str, str]):
    import clip_jax
    import vqgan_jax
    from vqgan_jax.guided import metadata

    vq = vqgan_jax.load(wanted.run["vqgan"])
    clips = [clip_jax.load(path) for path in wanted.run["clip"]]
    if repeat:
        about = metadata.read(repeat)
        told = [about["vqgan"]["sha256"], *(clip["sha256"] for clip in about["clips"])]
        found = [vq.fingerprint, *(clip.fingerprint for clip in clips)]
        if told != found:
            raise UserError(
                f"{repeat} was painted by weights of SHA-256 {', '.join(x[:12] for x in told)}; these have "
                f"{', '.join(x[:12] for x in found)}. Name the right ones by --vqgan and --clip"
            )
        metadata.unchanged(files, about["files"], repeat)
    return vq, clips


def _files(wanted: Order) -> dict[str, str]:
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.prompts import parse

    scenes = [scene for prompt in wanted.run["prompts"] for scene in parse(prompt)]
    return metadata.files(options_lib.resolve(wanted.options), scenes)


def _about(wanted: Order, vq, clips, files: Mapping[str, str]) -> dict[str, Any]:
    """What a PNG carries."""
    run = wanted.run
    return {
        "prompts": run["prompts"],
        "seed": run["seed"],
        "n": run["n"],
        "clip_weights": run["clip_weights"],
        "vqgan": {"path": run["vqgan"], "sha256": vq.fingerprint},
        "clips": [{"path": p, "sha256": c.fingerprint} for p, c in zip(run["clip"], clips, strict=True)],
        "files": files,
        "motion": wanted.motion,
        "only": wanted.only,
        "options": options_lib.resolve(wanted.options).to_json(),
    }


def _painted(arguments, wanted: Order, vq, clips, out: Path, about: dict[str, Any]) -> None:
    from PIL import Image

    from train_jax.pictures import enlarged_grid, image_grid
    from vqgan_jax.guided import metadata, video
    from vqgan_jax.guided.painting import paint

    n, prompts = wanted.run["n"], wanted.run["prompts"]

    def rows(images) -> list[list]:
        """A row a prompt."""
        return [list(images[i : i + n]) for i in range(0, len(images), n)]

    def shown(images) -> Image.Image:
        return Image.fromarray(images[0]) if len(images) == 1 else enlarged_grid(rows(images))

    preview = arguments.preview
    painting = paint(
        vq, clips, prompts, seed=wanted.run["seed"], n=n, clip_weights=wanted.run["clip_weights"],
        resume_from=arguments.resume, state_file=arguments.state,
        preview=preview and (lambda step, images, losses: shown(images).save(preview)), **wanted.options,
    )  # fmt: skip
    kept = slice(None) if wanted.only is None else slice(wanted.only, wanted.only + 1)
    metadata.save(shown(painting.images[kept]), out, about)
    if arguments.folder:
        folder = Path(arguments.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(painting.images):
            # Painted alone, by another program, it would be the same but for rounding: it tells what was beside it.
            one = about | {"only": number if len(painting.images) > 1 else None}
            metadata.save(Image.fromarray(image), folder / f"{number // n:04d}-{number % n:04d}.png", one)
    if arguments.video:
        shots = painting.snapshots[kept]
        frames = [image_grid(rows(shots[:, i])) for i in range(shots.shape[1])]
        video.write(arguments.video, frames, arguments.fps)


def _animated(arguments, wanted: Order, vq, clips, out: Path, about: dict[str, Any]) -> None:
    from PIL import Image

    from vqgan_jax.guided import metadata, video
    from vqgan_jax.guided.animation import Motion, animate

    if len(wanted.run["prompts"]) > 1 or wanted.run["n"] != 1:
        raise UserError("an animation has one prompt, of scenes separated by ^, and one picture: leave out --n")
    for name in ("state", "resume", "folder"):
        if getattr(arguments, name):
            raise UserError(f"--{name} is of pictures, not of an animation: leave it out")
    preview = arguments.preview
    found = animate(
        vq, clips, wanted.run["prompts"][0], motion=Motion(**wanted.motion), seed=wanted.run["seed"],
        clip_weights=wanted.run["clip_weights"],
        preview=preview and (lambda number, image: Image.fromarray(image).save(preview)), **wanted.options,
    )  # fmt: skip
    metadata.save(Image.fromarray(found.frames[-1]), out, about)
    if arguments.video:
        video.write(arguments.video, list(found.frames), arguments.fps)
