"""Picture files -> uint8 RGB arrays of one size: decode, resize, crop, flip. NumPy and Pillow; no JAX.

Pixels stay uint8 until they are on the device, where a model normalises them with the mean and deviation that
`Preprocess` carries.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from train_jax.data import bilinear, files
from train_jax.data.errors import BrokenSample, DataError
from train_jax.errors import ConfigError, LoadError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of WebImageText
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")  # of picture files
MAX_PIXELS = 89_478_485  # a larger picture is taken for a decompression bomb; beyond this Pillow warns of one

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What turns a picture upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DRAWN_BY_PROGRAMS = ("EPS", "WMF")
_ALIASED = "bilinear_aliased"
INTERPOLATIONS = (*_INTERPOLATIONS, _ALIASED)
MODES = ("crop", "crop_floor", "squash")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to 8-bit RGB: transparency on white, 16-bit grey scaled to 8.

    Raises BrokenSample for floating-point pixels.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(grey, 0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BrokenSample("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode(
    image: Image.Image | bytes | str | os.PathLike,
    *,
    max_pixels: int = MAX_PIXELS,
    convert: Callable[[Image.Image], Image.Image] = to_rgb,
) -> Image.Image:
    """Decodes a picture (PIL's, an encoded file's bytes, or a path), turns it upright and converts it to 8-bit RGB.

    EXIF orientation is applied, EXIF that cannot be read is passed over; of an animation the first frame is taken. Raises
    BrokenSample if the file is missing, damaged, cut off, no picture, or has no pixels or more than `max_pixels`; DataError
    for what is none of these, and for a disk that fails.
    """
    if isinstance(image, Image.Image):
        return _upright(image, convert)
    if not isinstance(image, bytes | str | os.PathLike):
        raise DataError(f"an image is a path, a file's bytes, a PIL picture or an array, not {type(image).__name__}")
    data = image if isinstance(image, bytes) else files.read_bytes(image)
    with _named_errors(), Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        if opened.format in _DRAWN_BY_PROGRAMS:
            raise BrokenSample(f"{opened.format} is drawn by a program of its own, not decoded")
        if width * height > max_pixels:
            raise BrokenSample(f"{width} x {height} pixels; at most {max_pixels:,} are decoded")
        return _upright(opened, convert)


def _upright(image: Image.Image, convert: Callable) -> Image.Image:
    if not image.width * image.height:
        raise BrokenSample(f"{image.width} x {image.height} pixels: there is nothing to see")
    with _named_errors():
        image.load()  # before its EXIF is asked for: TIFF turns itself here
        method = _UPRIGHT.get(_orientation(image))
        return convert(image if method is None else image.transpose(method))


def _orientation(image: Image.Image) -> int | None:
    """Reads the EXIF orientation; None if missing or unreadable, which is no fault of the pixels."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # SyntaxError, struct.error, ValueError, …
        return None
    return orientation if isinstance(orientation, int) else None


@contextlib.contextmanager
def _named_errors():
    """Turns any error of a decoder into a BrokenSample."""
    try:
        yield
    except (BrokenSample, DataError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenSample(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        raise BrokenSample(f"not a readable picture ({type(error).__name__}: {error})") from error


def center_crop(image: Image.Image, size: int, rounded: Callable[[float], int] = round) -> Image.Image:
    """Crops the middle `size` x `size` pixels; `rounded` rounds half of an odd margin, by default as torchvision does.
    """
    left, top = rounded((image.width - size) / 2), rounded((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str, box: tuple | None = None) -> Image.Image:
    """Resizes the picture, or its part in `box`, to `size` = (width, height) pixels."""
    if interpolation == _ALIASED:
        return Image.fromarray(bilinear.resize(np.asarray(image.crop(box) if box else image), *size))
    return image.resize(size, _INTERPOLATIONS[interpolation], box=box)


def resize_shortest(image: Image.Image, size: int, interpolation: str = "bicubic") -> Image.Image:
    """Scales a picture so that its shorter side has `size` pixels; the other is rounded down.

    Raises BrokenSample for a picture so long and thin that more than MAX_PIXELS would come of it.
    """
    short, long = sorted(image.size)
    other = int(size * long / short)
    if size * other > MAX_PIXELS:
        raise BrokenSample(
            f"{image.width} x {image.height} pixels, too thin: {size} x {other} after resizing; at most {MAX_PIXELS:,}"
        )
    target = (size, other) if image.width <= image.height else (other, size)
    return image if image.size == target else _resize(image, target, interpolation)


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> Image.Image:
    """Crops a random part of the picture and resizes it to `size` x `size` (arXiv 1409.4842, section 6).

    The part's area is uniform in `scale` times the picture's, its aspect log-uniform in `ratio`; after ten draws that
    do not fit, the largest centred part of an allowed aspect is taken.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
    return _resize(image, (size, size), interpolation, (left, top, left + w, top + h))


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Image preprocessing that a model expects; saved beside the weights as `preprocess.json`.

    Attributes:
      size: side of the square the model sees, in pixels.
      mode: "crop" resizes the shorter side and takes the middle; "crop_floor" does so with odd margins rounded down, as
        transformers rounds; "squash" resizes both sides and keeps everything.
      interpolation: "nearest", "bilinear", "bicubic" or "lanczos", antialiased as Pillow does; "bilinear_aliased" is not
        antialiased, as big_vision's is not.
      mean, std: of each colour channel, on the scale [0, 1]; applied on the device.
    """

    size: int
    mode: str = "crop"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self):
        if type(self.size) is not int or self.size < 1:
            raise ConfigError(f"preprocess size {self.size!r} must be a number of pixels, 1 or more")
        if self.mode not in MODES:
            raise ConfigError(f"preprocess mode {self.mode!r} must be one of {', '.join(MODES)}")
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation {self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")

    def __call__(self, image: Image.Image | np.ndarray | bytes | str | os.PathLike) -> UInt8[np.ndarray, "size size 3"]:
        """A PIL picture, a uint8 [H, W, 3] array, a file's bytes or its path -> uint8 [size, size, 3].

        Pictures are turned upright, whatever form they come in. Raises BrokenSample for one that cannot be decoded or has
        no pixels, DataError for an array of another kind and for what is no picture.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise DataError(f"an image array must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
            image = Image.fromarray(image) if image.size else Image.new("RGB", image.shape[1::-1])
        image = decode(image)
        if image.size != (self.size, self.size):
            if self.mode == "squash":
                image = _resize(image, (self.size, self.size), self.interpolation)
            else:
                rounded = round if self.mode == "crop" else math.floor
                image = center_crop(resize_shortest(image, self.size, self.interpolation), self.size, rounded)
        return np.asarray(image)

    def named(
        self, image: Image.Image | np.ndarray | bytes | str | os.PathLike, index: int
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Preprocesses an image; errors name it by its path or its index."""
        try:
            return self(image)
        except (BrokenSample, DataError) as error:
            which = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"
            message = str(error)
            raise type(error)(message if message.startswith(which) else f"{which}: {message}") from error

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Preprocess":
        """Raises LoadError for what `to_json` has not written."""
        try:
            fields = json.loads(text)
            mean, std = (tuple(float(x) for x in fields[name]) for name in ("mean", "std"))
            if not len(mean) == len(std) == 3 or not np.isfinite(mean + std).all() or min(std) <= 0:
                raise ValueError(f"mean {mean} and std {std} must be three numbers each")
            return cls(**fields | {"mean": mean, "std": std})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LoadError(f"preprocess.json is damaged: {error}") from error


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images.

    Attributes:
      preprocess: the preprocessing of evaluation, applied last.
      scale: share of the picture's area in a random resized crop; (1, 1): none.
      flip: left to right, half of the time; it makes "left of" untrue.
    """

    preprocess: Preprocess
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False

    def __call__(self, image: bytes | str | os.PathLike, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        """A picture file's bytes or path -> uint8 [size, size, 3]. Raises BrokenSample if it cannot be decoded."""
        picture, size = decode(image), self.preprocess.size
        if self.scale != (1.0, 1.0):
            interpolation = self.preprocess.interpolation
            picture = random_resized_crop(picture, size, rng, scale=self.scale, interpolation=interpolation)
        pixels = self.preprocess(picture)
        if self.flip and rng.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return pixels


def normalize(images, mean: tuple[float, ...], std: tuple[float, ...]):
    """uint8 [..., 3] -> float: `(x / 255 - mean) / std`. Works on NumPy and JAX arrays alike, on any device."""
    scale = np.asarray([1 / (255 * s) for s in std], np.float32)
    shift = np.asarray([m / s for m, s in zip(mean, std, strict=True)], np.float32)
    lead = (1,) * (images.ndim - 1)
    return images.astype(np.float32) * scale.reshape(*lead, 3) - shift.reshape(*lead, 3)
