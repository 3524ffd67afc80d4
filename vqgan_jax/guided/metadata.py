"""What a PNG tells of its painting, enough to paint it again: prompts, seeds, options, and hashes of weights and files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from train_jax.data.files import read_bytes
from train_jax.errors import UserError
from train_jax.pictures import read_png_text, save_png
from vqgan_jax.guided.options import PICTURES, Options
from vqgan_jax.guided.prompts import Scene

KEY = "vqgan-jax paint"
_TOLD = {"prompts", "seed", "n", "clip_weights", "vqgan", "clips", "files", "motion", "only", "options"}


def files(options: Options, scenes: Sequence[Scene]) -> dict[str, str]:
    """SHA-256 of every file that options and prompts name, and of arrays and pictures by the option's name."""
    named = [part.what for scene in scenes for part in scene if part.kind == "image"]
    named += [options.aesthetic] if options.aesthetic else []
    found = {}
    for name in PICTURES:
        value = getattr(options, name)
        if isinstance(value, str | Path):
            named.append(str(value))
        elif value is not None:
            found[name] = hashlib.sha256(value.tobytes()).hexdigest()
    return found | {name: hashlib.sha256(read_bytes(name)).hexdigest() for name in named}


def save(image: Image.Image, path: str | Path, about: dict[str, Any]) -> None:
    """Writes a PNG that carries `about`."""
    save_png(image, path, KEY, about)


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote. UserError for a picture that carries nothing of the kind."""
    text = read_png_text(path, KEY)
    if text is None:
        raise UserError(f"{path} does not tell how it was painted: only PNGs of vqgan-jax paint do")
    try:
        about = json.loads(text)
        complete = about.keys() >= _TOLD and _readable(about)
    except (ValueError, AttributeError, KeyError, TypeError):
        complete = False
    if not complete:
        raise UserError(f"{path}: what it tells of its painting is damaged")
    return about


def _readable(about: dict[str, Any]) -> bool:
    """Whether everything has the type that `save` gave it."""
    models = [about["vqgan"], *about["clips"]]
    good = all(isinstance(model[key], str) for model in models for key in ("path", "sha256"))
    good = good and all(isinstance(about[name], dict) for name in ("files", "motion", "options"))
    good = good and all(isinstance(prompt, str) for prompt in about["prompts"]) and isinstance(about["prompts"], list)
    pictures = type(about["n"]) is int and about["n"] * len(about["prompts"])
    return good and (about["only"] is None or (type(about["only"]) is int and 0 <= about["only"] < pictures))


def unchanged(found: dict[str, str], wanted: dict[str, str], path: str | Path) -> None:
    """UserError for a file that is not the one a painting was made with."""
    for name, digest in wanted.items():
        if found.get(name) != digest:
            raise UserError(f"{path} was painted with {name} of SHA-256 {digest[:12]}…, and there it is no longer that")
