"""Metadata of a painted PNG, sufficient to reproduce it: prompts, seeds, options, and hashes of weights and files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from train_jax import paths
from train_jax.arguments import DTYPES
from train_jax.data.files import read_bytes
from train_jax.errors import UserError
from train_jax.pictures import read_png_text, save_png
from vqgan_jax.guided import video
from vqgan_jax.guided.options import IMAGE_OPTIONS, Options
from vqgan_jax.guided.prompts import Scene

KEY = "vqgan-jax paint"
_KEYS = {"prompts", "seed", "n", "clip_weights", "dtype", "vqgan", "clips", "files", "motion", "only", "options"}


def hash_files(options: Options, scenes: Sequence[Scene]) -> dict[str, str]:
    """Hashes input files and runs by SHA-256, keyed by path; arrays, by the option's name; sources of losses."""
    files = [file for scene in scenes for part in scene for file in part.files]
    files += [options.aesthetic.aesthetic] if options.aesthetic else []
    files += [options.style.style_network] if options.style and options.style.style_network else []
    values, hashes = options.to_flat_dict(), {}
    for name in IMAGE_OPTIONS:
        if isinstance(values[name], str | Path):
            files.append(str(values[name]))
        elif values[name] is not None:
            hashes[name] = hashlib.sha256(values[name].tobytes()).hexdigest()
    if options.custom_losses is not None:
        hashes |= {f"the loss {loss.name}": loss.hash_source() for loss in options.custom_losses.losses}
    runs = options.drawing.make().runs if options.drawing else ()
    if options.drawn_start is not None:
        runs = (*runs, options.start.init_dalle)
    hashes |= {run: hash_run(run) for run in runs}
    return hashes | {file: hashlib.sha256(read_bytes(file)).hexdigest() for file in files}


def hash_frames(path: str) -> dict[str, str]:
    """Hashes a video or sound, or the pictures of a folder, by SHA-256, keyed by path."""
    files = video.list_pictures(path) if Path(path).is_dir() else [path]
    return {str(file): hashlib.sha256(read_bytes(file)).hexdigest() for file in files}


def hash_run(path: str) -> str:
    """Hashes what determines the weights of a run directory: names and contents of config and newest checkpoint."""
    folder, digest = paths.path(path), hashlib.sha256()
    steps = [x for x in (folder / "checkpoints").glob("*") if x.name.isdecimal()]
    newest = max(steps, key=lambda x: int(x.name), default=folder / "checkpoints")
    for file in sorted([folder / "config.json", *newest.rglob("*")]):
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def save(image: Image.Image, path: str | Path, fields: dict[str, Any]) -> None:
    """Writes a PNG with the metadata `fields`."""
    save_png(image, path, KEY, fields)


def read(path: str | Path) -> dict[str, Any]:
    """Reads the metadata of a PNG written by `save`. Raises UserError for a file without valid metadata."""
    text = read_png_text(path, KEY)
    if text is None:
        raise UserError(f"{path} contains no metadata of a painting: only PNGs written by vqgan-jax paint do")
    try:
        fields = {"dtype": "float32"} | json.loads(text)  # of earlier versions, which did not write it
        is_complete = fields.keys() >= _KEYS and _is_valid(fields)
    except (ValueError, AttributeError, KeyError, TypeError):
        is_complete = False
    if not is_complete:
        raise UserError(f"{path}: its metadata are damaged")
    return fields


def _is_valid(fields: dict[str, Any]) -> bool:
    """Returns whether all values have the types that `save` wrote."""
    models = [*([] if fields["vqgan"] is None else [fields["vqgan"]]), *fields["clips"]]
    valid = all(isinstance(model[key], str) for model in models for key in ("path", "sha256"))
    valid = valid and fields["dtype"] in DTYPES
    valid = valid and all(isinstance(fields[name], dict) for name in ("files", "motion", "options"))
    valid = (
        valid and all(isinstance(prompt, str) for prompt in fields["prompts"]) and isinstance(fields["prompts"], list)
    )
    grid = fields.get("grid", {"values": {}, "beside": {}})
    valid = valid and isinstance(grid["values"], dict) and isinstance(grid["beside"], dict)
    num_images = type(fields["n"]) is int and fields["n"] * len(fields["prompts"])
    return valid and (fields["only"] is None or (type(fields["only"]) is int and 0 <= fields["only"] < num_images))


def check_unchanged(actual: dict[str, str], expected: dict[str, str], path: str | Path) -> None:
    """Raises UserError if a file's hash differs from the one in the metadata of the PNG at `path`."""
    for name, digest in expected.items():
        if actual.get(name) != digest:
            raise UserError(f"{path} was painted with {name} of SHA-256 {digest[:12]}…, which has changed since")
