"""Image preprocessing of Hugging Face directories, read from `preprocessor_config.json`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from clip_jax.pretrained.json_files import read_json
from train_jax.data.images import CLIP_MEAN, CLIP_STD, NATIVE, Preprocess
from train_jax.errors import LoadError

FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's filter codes
_HALF = (0.5, 0.5, 0.5)
_SQUARE = {"height": 224, "width": 224}
_SUPPORTED_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
# Defaults of CLIPImageProcessor and SiglipImageProcessor in transformers.
_SHARED = {
    "do_resize": True,
    "resample": 3,
    "crop_size": _SQUARE,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_DEFAULTS = {
    "CLIP": {"size": {"shortest_edge": 224}, "do_center_crop": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "Siglip": {"size": _SQUARE, "do_center_crop": False, "image_mean": _HALF, "image_std": _HALF},
    "Siglip2": {"resample": 2, "image_mean": _HALF, "image_std": _HALF, "patch_size": 16, "max_num_patches": 256},
}


def open_preprocess(path: Path, size: int, family: str = "CLIP", patch: int = 0) -> Preprocess | None:
    """Reads the image preprocessing of a directory. Returns None if the directory has no preprocessing file.

    Args:
      size: side of the model's images, in pixels.
      family: "CLIP", "Siglip" or "Siglip2"; its processor is the default if the file names no processor.
      patch: side of the patches of a model of native aspect ratio, which has a Siglip2ImageProcessor; 0: other models.

    Options have the meaning and defaults of transformers. Raises LoadError, which names the option, if an option is
    unknown or yields images of another size.
    """
    file, config = _read_config(path)
    if config is None:
        return None

    def raise_unsupported(option: str, reason: str) -> NoReturn:
        raise LoadError(f"{file}: {option} = {config.get(option)!r} is not supported: {reason}")

    processor = config.get("image_processor_type") or config.get("feature_extractor_type") or f"{family}ImageProcessor"
    match = re.fullmatch(r"(?:Chinese)?(CLIP|Siglip2?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(processor))
    if match is None or (match[1] == "Siglip2") != (patch > 0):
        allowed = "Siglip2ImageProcessor is" if patch else "those of CLIP, Chinese-CLIP and SigLIP are"
        raise LoadError(f"{file}: {processor} is not known for this model; {allowed}")
    config = _SHARED | _DEFAULTS[match[1]] | config
    unknown = [
        name for name, value in config.items() if name.startswith("do_") and value and name not in _SUPPORTED_STEPS
    ]
    if unknown:
        raise_unsupported(unknown[0], f"supported are {', '.join(_SUPPORTED_STEPS)}")
    if not config["do_resize"]:
        raise_unsupported("do_resize", f"the model's images are {size} x {size} pixels")
    if config["resample"] not in RESAMPLE:
        raise_unsupported("resample", f"it must be one of {RESAMPLE}")
    mean, std = _compute_statistics(config, raise_unsupported)
    if patch:
        if config["patch_size"] != patch or config.get("do_center_crop"):
            option = "patch_size" if config["patch_size"] != patch else "do_center_crop"
            raise_unsupported(option, f"the model's images are of any size in patches of {patch} pixels")
        return Preprocess(size, NATIVE, RESAMPLE[config["resample"]], mean, std, patch, config["max_num_patches"])
    sides, crop = _parse_sides(config["size"], "shortest_edge"), _parse_sides(config["crop_size"], "height")
    squash = sides.keys() == {"height", "width"}
    if set(sides.values()) != {size} or not (squash or sides.keys() == {"shortest_edge"}):
        raise_unsupported("size", f"the model's images are {size} x {size} pixels")
    if config["do_center_crop"] and set(crop.values()) != {size}:
        raise_unsupported("crop_size", f"the model's images are {size} x {size} pixels")
    if not config["do_center_crop"] and not squash:
        raise_unsupported(
            "do_center_crop", f"the model's images are {size} x {size} pixels; a resized image need not be square"
        )
    return Preprocess(size, "squash" if squash else "crop_floor", RESAMPLE[config["resample"]], mean, std)


def _read_config(path: Path) -> tuple[Path, dict | None]:
    """Returns the configuration file and its options that are not null. The options are None if there is no file."""
    file, combined = (path / name for name in FILES)  # transformers 5 may save one file for both processors
    config = read_json(file) if file.is_file() else None
    if config is None and combined.is_file():
        file, config = combined, read_json(combined).get("image_processor")
    return file, None if config is None else {name: value for name, value in config.items() if value is not None}


def _parse_sides(value, name: str) -> dict[str, int]:
    """Converts a size to the format of current transformers. In older files, a single number is the side `name`."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return dict(zip(("height", "width"), value, strict=True))
    return {"height": value, "width": value} if name == "height" else {name: value}


def _compute_statistics(config: Mapping, raise_unsupported) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and standard deviation for pixels in [0, 1], for any rescale factor."""
    mean, std = (0.0, 1.0) if not config["do_normalize"] else (config["image_mean"], config["image_std"])
    if config["do_rescale"] and not config["rescale_factor"] > 0:
        raise_unsupported("rescale_factor", "it must be more than 0")
    scale = 255 * (config["rescale_factor"] if config["do_rescale"] else 1)
    channels = ((x,) * 3 if isinstance(x, (int, float)) else x for x in (mean, std))
    mean, std = (tuple(float(x) / scale for x in values) for values in channels)
    if len(mean) != 3:
        raise_unsupported("image_mean", "it must be a number for each of three channels")
    if len(std) != 3 or min(std) <= 0:
        raise_unsupported("image_std", "it must be a number above 0 for each of three channels")
    return mean, std
