"""Where commands write their images: a grid, a folder of PNGs that an interrupted command continues, and their metadata."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from train_jax import arguments as arguments_lib
from train_jax.errors import UserError

KEY = "dalle"  # key of the PNG text chunk


def add_output_options(parser: argparse.ArgumentParser, n: int, counted: str = "images per prompt") -> None:
    """Adds the options of outputs and of sampling that all commands share.

    Args:
      n: default number of images.
      counted: what `--n` counts; empty: for a command without `--n` and `--seed`.
    """
    parser.add_argument("--out", metavar="FILE", help="PNG file for the image grid")
    parser.add_argument(
        "--folder", metavar="FOLDER", help="folder for each image as a separate PNG, for any number of images"
    )
    if counted:
        parser.add_argument("--n", type=int, default=n, help=f"number of {counted} (default {n})")
        parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="maximum number of images per batch (default 64)")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="scale of classifier-free guidance (default 1: none)"
    )


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raises UserError if `--out`, `--preview` or `--folder` cannot be written, or there is no output."""
    out, preview = arguments.out, getattr(arguments, "preview", None)
    if not out and not arguments.folder:
        raise UserError("name --out FILE for a grid, or --folder FOLDER for the images, or both")
    if out:
        arguments_lib.png(out, "the grid")
    if preview:
        arguments_lib.png(preview, "the preview", "--preview")
    arguments_lib.check_outputs(out=out, preview=preview, folder=arguments.folder)


def check_ranking(arguments: argparse.Namespace) -> None:
    """Raises UserError if the best images are asked for without a ranking."""
    if arguments.best is not None and not arguments.rerank:
        raise UserError(f"--best {arguments.best} needs a ranking: set --rerank")


def describe_image(name: str, path: str) -> dict[str, str]:
    """Returns the name and the hash of an image file, as metadata."""
    from train_jax.data.files import read_bytes

    return {name: Path(path).name, f"{name}_sha256": hashlib.sha256(read_bytes(path)).hexdigest()}


def write_drawings(
    model: Any, prompts: list[str], options: dict[str, Any], arguments: argparse.Namespace, metadata: dict[str, Any]
) -> int:
    """Samples images of prompts by `model.draw` or `model.stream`, and writes grid and folder. Returns the exit code.

    Raises UserError for options that the model refuses.
    """
    from train_jax.data.images import decode
    from train_jax.pictures import split_into_rows

    try:
        if arguments.folder:
            files, samples = _draw_into_folder(model, prompts, arguments.n, options, Path(arguments.folder), metadata)
        else:
            drawing = model.draw(prompts, arguments.n, **options)
            rows, samples = [list(row) for row in drawing.images], drawing.samples.tolist()
    except ValueError as error:
        raise UserError(str(error)) from error
    if arguments.out:
        if arguments.folder:
            rows = [[np.asarray(decode(file)) for file in row] for row in files]
        if len(rows) == 1:  # one prompt: a square grid instead of one row
            rows = split_into_rows(rows[0])
        _save_grid(rows, arguments.out, metadata | {"prompts": prompts, "samples": samples})
    return _report(arguments)


def write_images(images: UInt8[np.ndarray, "n H W 3"], arguments: argparse.Namespace, metadata: dict[str, Any]) -> int:
    """Writes images as a row, and as `FOLDER/0000.png` and so on. Returns the exit code."""
    from train_jax.pictures import PictureFolder

    if arguments.folder:
        pictures = PictureFolder(arguments.folder, KEY, metadata)
        for index, image in enumerate(images):
            name = f"{index:04d}.png"
            if not pictures.holds(name, index=index):
                pictures.save(image, name, index=index)
    if arguments.out:
        _save_grid([list(images)], arguments.out, metadata)
    return _report(arguments)


def _save_grid(rows: list, out: str, metadata: dict[str, Any]) -> None:
    from train_jax.pictures import enlarged_grid, save_png

    save_png(enlarged_grid(rows), out, KEY, metadata)


def _report(arguments: argparse.Namespace) -> int:
    print(f"wrote {' and '.join(filter(None, (arguments.out, arguments.folder)))}", file=sys.stderr)
    return 0


def _draw_into_folder(
    model: Any, prompts: list[str], n: int, options: dict, folder: Path, metadata: dict
) -> tuple[list[list[Path]], list[list[int]]]:
    """Draws the images that are not in the folder yet. Returns the files of each prompt and their sample indices."""
    from train_jax.pictures import PictureFolder

    pictures, ranks = PictureFolder(folder, KEY, metadata), {}
    for file in sorted(folder.glob("*-*.png")):
        index, _, sample = file.stem.partition("-")
        if not (index.isdigit() and sample.isdigit() and int(index) < len(prompts)):
            raise UserError(f"{file} is no image of this command: name a new folder")
        row = ranks.setdefault(int(index), {})
        row[_rank(file)] = int(sample)
        pictures.holds(file.name, prompt=prompts[int(index)], sample=int(sample), rank=_rank(file))
    count = options["best"] or n
    missing = [i for i in range(len(prompts)) if len(ranks.get(i, ())) < count]
    for index, drawing in model.stream(prompts, n, only=missing, **options):
        ranks[index] = dict(enumerate(drawing.samples[0].tolist()))
        for rank, image in enumerate(drawing.images[0]):
            sample = ranks[index][rank]
            pictures.save(image, f"{index:04d}-{sample:04d}.png", prompt=prompts[index], sample=sample, rank=rank)
    samples = [[ranks[index][rank] for rank in range(count)] for index in range(len(prompts))]
    files = [[folder / f"{index:04d}-{sample:04d}.png" for sample in row] for index, row in enumerate(samples)]
    return files, samples


def _rank(file: Path) -> int | None:
    """Returns the rank of an image among the samples of its prompt, from its metadata."""
    from train_jax.pictures import read_png_text

    return json.loads(read_png_text(file, KEY) or "{}").get("rank")
