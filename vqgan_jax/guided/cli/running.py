"""Paints what a request asks for, and writes pictures, grids and videos with their metadata."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train_jax import arguments as arguments_lib
from train_jax.errors import ConfigError, UserError
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided import video
from vqgan_jax.guided.cli.exploring import commands_file, run_exploration
from vqgan_jax.guided.cli.request import PaintRequest, parse_request
from vqgan_jax.guided.cli.validation import validate

_TERMINAL = "-"  # as the file of --preview
_VIDEO_STEPS = 5  # default of --save-every with --video: number of steps between frames


def paint_command(arguments: argparse.Namespace) -> int:
    """Runs the command `paint`."""
    out = arguments_lib.png(arguments.out, "the image")
    if arguments.preview and arguments.preview != _TERMINAL:
        arguments_lib.png(arguments.preview, "the preview", "--preview")
    outputs = {name: getattr(arguments, name) for name in ("out", "video", "preview", "state", "folder")}
    if arguments.preview == _TERMINAL:
        del outputs["preview"]
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
            outputs.append(str(commands_file(arguments.out)))
            if f"@{outputs[-1]}" in (getattr(arguments, "prompts", None) or ()):
                raise UserError(f"{outputs[-1]}, into which --explore writes commands, is an input: choose another --out")
        files = validate(request, outputs)
        if request.motion and not arguments.video and not arguments.repeat:
            flag = "--video-in" if "video_in" in request.motion else "--frames"
            raise UserError(f"{flag} creates an animation: name the video file by --video")
        vq, clips = _load_models(request, arguments.repeat, files)
        run = run_exploration if request.grid else _run_animation if request.motion else run_painting
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
      preview: as in `guided.paint`; None: writes to `arguments.preview`, if it is set.
    """
    from PIL import Image

    from train_jax.pictures import enlarged_grid, image_grid
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.colour import over_white
    from vqgan_jax.guided.painting import paint
    from vqgan_jax.guided.stopping import describe_stops

    n, prompts = request.run["n"], request.run["prompts"]

    def group_by_prompt(images) -> list[list]:
        """Groups images into one row per prompt."""
        return [list(images[i : i + n]) for i in range(0, len(images), n)]

    def make_sheet(images) -> Image.Image:
        """Returns the only image, or a grid with one row per prompt, in which what is transparent is white."""
        return Image.fromarray(images[0]) if len(images) == 1 else enlarged_grid(group_by_prompt(over_white(images)))

    def write_preview(step, images, losses) -> None:
        _write_preview(make_sheet(images), arguments.preview)

    painting = paint(
        vq, clips, prompts, seed=request.run["seed"], n=n, clip_weights=request.run["clip_weights"],
        resume_from=arguments.resume, state_file=arguments.state,
        preview=preview or (write_preview if arguments.preview else None), **request.options,
    )  # fmt: skip
    if stops := describe_stops(painting.steps, painting.losses.shape[1]):
        print(stops, file=sys.stderr)
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
        preview=preview and (lambda index, image: _write_preview(Image.fromarray(image), preview)), **request.options,
    )  # fmt: skip
    metadata.save(Image.fromarray(animation.frames[-1]), arguments.out, fields)
    if arguments.video:
        fps = arguments.fps or request.motion.get("fps", video.FPS)
        video.write(arguments.video, list(over_white(animation.frames)), fps)


def _write_preview(image, path: str) -> None:
    """Writes an intermediate picture, a PIL image, to a PNG, or draws it in the terminal, over white if it has alpha."""
    import numpy as np
    from tqdm import tqdm

    from train_jax.pictures import draw_as_text
    from vqgan_jax.guided.colour import over_white

    if path == _TERMINAL:
        tqdm.write(draw_as_text(over_white(np.asarray(image)), shutil.get_terminal_size().columns), sys.stderr, end="")
    else:
        image.save(path)
