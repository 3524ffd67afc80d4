"""Image preprocessing with NumPy and Pillow: decodes, resizes, crops and flips image files to uint8 RGB arrays.

Pixels stay uint8 on the host; the model normalises them on the device with mean and standard deviation of `Preprocess`.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from nn_jax.patches import Patches, cut_patches
from train_jax.data import bilinear, files
from train_jax.data.color_jitter import ColorJitter
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.papers import Papers
from train_jax.errors import ConfigError, LoadError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's data set WebImageText
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # larger images are rejected as decompression bombs; Pillow warns above the same limit

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# EXIF orientation -> transposition to the upright image.
_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ROTATIONS = tuple(_EXIF_TRANSPOSE[orientation] for orientation in (5, 6, 7, 8))  # width becomes height
_VECTOR_FORMATS = ("EPS", "WMF")
_ALIASED = "bilinear_aliased"
_ANTIALIASED = ("bilinear", "bicubic", "lanczos")
INTERPOLATIONS = (*_INTERPOLATIONS, _ALIASED)
MODES = ("crop", "crop_floor", "squash")
NATIVE = "native"  # the mode of images of native aspect ratio
_GRID_BYTES = 4  # of packed patches: numbers of rows and columns, in 16 bits each


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to 8-bit RGB, with a white background for transparent pixels.

    16-bit grey is scaled to 8 bits. Raises BrokenSample for floating-point pixels.
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
    """Decodes an image, applies its EXIF orientation and converts it to 8-bit RGB.

    Args:
      image: a PIL image, the bytes of an image file, or a path.
      max_pixels: maximum number of pixels of a file.
      convert: conversion of the upright PIL image.

    Unreadable EXIF is ignored; animations yield the first frame. Raises BrokenSample if the file is missing, damaged,
    truncated, not an image, empty, or larger than `max_pixels`; DataError for another type of `image` and for a disk
    failure.
    """
    if isinstance(image, Image.Image):
        return _apply_orientation(image, convert)
    with _open(image, max_pixels) as opened:
        return _apply_orientation(opened, convert)


@contextlib.contextmanager
def _open(image: bytes | str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Opens an image file without decoding its pixels. Raises the errors of `decode`, also while the image is used."""
    if not isinstance(image, bytes | str | os.PathLike):
        raise DataError(f"an image must be a path, a file's bytes, a PIL image or an array, not {type(image).__name__}")
    data = image if isinstance(image, bytes) else files.read_bytes(image)
    with _convert_decoder_errors(), Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        if opened.format in _VECTOR_FORMATS:
            raise BrokenSample(f"{opened.format} is a vector format, which is not decoded")
        if width * height > max_pixels:
            raise BrokenSample(f"{width} x {height} pixels; at most {max_pixels:,} are decoded")
        yield opened


def decode_region(
    image: bytes | str | os.PathLike,
    choose_region: Callable[[int, int], tuple[tuple[int, int, int, int], tuple[int, int]]],
    *,
    may_shrink: bool = True,
    convert: Callable[[Image.Image], Image.Image] = to_rgb,
) -> tuple[Image.Image, tuple[float, float, float, float], tuple[int, int]]:
    """Decodes an image for the resizing of a region, if possible at a smaller scale.

    Args:
      image: the bytes of an image file, or a path.
      choose_region: `(width, height) -> (region, size)`: the region (left, top, right, bottom) of the upright image, and the
        size (width, height) that it will be resized to, in pixels.
      may_shrink: whether JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size, by inverse transforms of fewer coefficients.
        The smallest scale is used at which the region has at least as many columns and rows as `size`.
      convert: conversion of the upright image to RGB; JPEGs are RGB already.

    Returns the decoded image, the region in its pixels, and the size. Raises the errors of `decode`.
    """
    with _open(image) as opened:
        if opened.format != "JPEG":
            upright = _apply_orientation(opened, convert)
            (left, top, right, bottom), size = choose_region(*upright.size)
            return upright, (float(left), float(top), float(right), float(bottom)), size
        transpose = _EXIF_TRANSPOSE.get(_read_orientation(opened))
        width, height = opened.size[::-1] if transpose in _ROTATIONS else opened.size
        region, size = choose_region(width, height)
        scale = _choose_scale(region, size) if may_shrink else 1
        if transpose is not None and (width % scale or height % scale):
            scale = 1  # padding, which completes the last pixels, would be on the wrong side
        if scale > 1:
            opened.draft(None, (opened.width // scale, opened.height // scale))
        left, top, right, bottom = (edge / scale for edge in region)
        return _apply_orientation(opened, to_rgb), (left, top, right, bottom), size


def _choose_scale(region: tuple[int, int, int, int], size: tuple[int, int]) -> int:
    """Returns the largest denominator of a JPEG's scales at which a region has at least `size` pixels, or 1."""
    left, top, right, bottom = region
    return next((s for s in (8, 4, 2) if right - left >= s * size[0] and bottom - top >= s * size[1]), 1)


def _apply_orientation(image: Image.Image, convert: Callable) -> Image.Image:
    """Applies the EXIF orientation of an image, then `convert`."""
    if not image.width * image.height:
        raise BrokenSample(f"{image.width} x {image.height} pixels: the image is empty")
    with _convert_decoder_errors():
        image.load()  # before reading EXIF, since loading a TIFF already applies the orientation
        transpose = _EXIF_TRANSPOSE.get(_read_orientation(image))
        return convert(image if transpose is None else image.transpose(transpose))


def _read_orientation(image: Image.Image) -> int | None:
    """Reads the EXIF orientation of an image; returns None if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # SyntaxError, struct.error, ValueError, …
        return None
    return orientation if isinstance(orientation, int) else None


@contextlib.contextmanager
def _convert_decoder_errors():
    """Converts any error of an image decoder to BrokenSample."""
    try:
        yield
    except (BrokenSample, DataError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenSample(f"too many pixels: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenSample("not a readable image (empty, damaged or of no known format)") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        raise BrokenSample(f"not a readable image ({type(error).__name__}: {error})") from error


def center_crop(image: Image.Image, size: int, round_half: Callable[[float], int] = round) -> Image.Image:
    """Crops the central `size` x `size` pixels.

    Args:
      round_half: rounding of half the margin; the default equals torchvision.
    """
    left, top = round_half((image.width - size) / 2), round_half((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str, region: tuple | None = None) -> Image.Image:
    """Resizes an image, or its region (left, top, right, bottom), to `size` = (width, height) pixels."""
    if image.size == size and region in (None, (0, 0, *size)):
        return image
    if interpolation == _ALIASED:
        return Image.fromarray(bilinear.resize(np.asarray(image.crop(region) if region else image), *size))
    return image.resize(size, _INTERPOLATIONS[interpolation], box=region)


def shortest_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Returns width and height of an image after resizing to a shorter side of `size` pixels.

    The longer side is rounded down. Raises BrokenSample if the result would have more than MAX_PIXELS.
    """
    shorter, longer = sorted((width, height))
    target_longer = int(size * longer / shorter)
    if size * target_longer > MAX_PIXELS:
        raise BrokenSample(
            f"{width} x {height} pixels, too thin: {size} x {target_longer} after resizing; at most {MAX_PIXELS:,}"
        )
    return (size, target_longer) if width <= height else (target_longer, size)


def sample_crop(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Samples the region (left, top, right, bottom) of a random resized crop (arXiv 1409.4842, section 6).

    Args:
      scale: range of the region's area, as a share of the image's area; sampled uniformly.
      ratio: range of the region's aspect ratio; sampled log-uniformly.

    After ten samples that do not fit, the largest central region with an allowed aspect ratio is returned.
    """
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
    return left, top, left + w, top + h


def fit_patches(width: int, height: int, patch: int, max_patches: int) -> tuple[int, int]:
    """Returns the largest size (width, height) of an image, in whole patches, that has at most `max_patches` of them.

    Both sides are scaled by the same factor, of at most 100, and rounded up to multiples of `patch`. The factor is searched
    by bisection to 1e-5, as big_vision and transformers do.
    """

    def scaled(factor: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(side * factor / patch)) for side in (width, height))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(scaled(middle)) <= max_patches else (low, middle)
    columns, rows = scaled(low)
    return columns * patch, rows * patch


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Image preprocessing that a model expects, saved beside the weights as `preprocess.json`.

    Attributes:
      size: side of the square input image of the model, in pixels.
      mode: "crop" resizes the shorter side and crops the centre; "crop_floor" does the same with odd margins rounded down,
        like transformers; "squash" resizes both sides without cropping; "native" keeps the aspect ratio, with sides of whole
        patches (see `fit_patches`).
      interpolation: "nearest", "bilinear", "bicubic" or "lanczos" with Pillow's antialiasing; "bilinear_aliased" without
        antialiasing, like big_vision.
      mean: mean of each colour channel, on the scale [0, 1]; applied on the device.
      std: standard deviation of each colour channel, on the same scale.
      patch, max_patches: side of a patch, in pixels, and largest number of patches of an image; only of the mode "native".
    """

    size: int
    mode: str = "crop"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    patch: int = 0
    max_patches: int = 0

    def __post_init__(self):
        if type(self.size) is not int or self.size < 1:
            raise ConfigError(f"preprocess size {self.size!r} must be a number of pixels, 1 or more")
        if self.mode not in (*MODES, NATIVE):
            raise ConfigError(f"preprocess mode {self.mode!r} must be one of {', '.join((*MODES, NATIVE))}")
        budget = self.patch, self.max_patches
        is_budget = all(type(number) is int for number in budget) and budget[0] >= 2 and budget[1] >= 1
        if not is_budget if self.is_native else budget != (0, 0):
            raise ConfigError(
                f"preprocess patch and max_patches {budget!r} must be at least 2 pixels and 1 patch with the mode "
                f"{NATIVE!r}, and 0 with the mode {self.mode!r}"
            )
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation {self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")

    @property
    def is_native(self) -> bool:
        """Whether images keep their aspect ratio."""
        return self.mode == NATIVE

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image in a batch; see `pack`."""
        return (1 + self.max_patches, self.patch, self.patch, 3) if self.is_native else (self.size, self.size, 3)

    @property
    def square(self) -> "Preprocess":
        """The preprocessing to squares of `size`, for what needs a fixed grid of patches: "squash" in place of "native"."""
        return dataclasses.replace(self, mode="squash", patch=0, max_patches=0) if self.is_native else self

    def __call__(self, image: Image.Image | np.ndarray | bytes | str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
        """Preprocesses an image to uint8 [size, size, 3], or with the mode "native" to sides of whole patches.

        Args:
          image: a PIL image, a uint8 [H, W, 3] array, the bytes of an image file, or a path.

        Applies the EXIF orientation. Raises BrokenSample for an image that cannot be decoded or is empty, DataError for an
        array of another dtype or shape and for other types.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise DataError(f"an image array must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
            image = Image.fromarray(image) if image.size else Image.new("RGB", image.shape[1::-1])
        image = decode(image)
        return self.resize_and_crop(image, self.target_size(*image.size))

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the size (width, height) that an image is resized to before its centre is cropped."""
        if self.is_native:
            return fit_patches(width, height, self.patch, self.max_patches)
        return (self.size, self.size) if self.mode == "squash" else shortest_size(width, height, self.size)

    def region_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the size (width, height) that a random crop of an image is resized to."""
        return self.target_size(width, height) if self.is_native else (self.size, self.size)

    def resize_and_crop(
        self, image: Image.Image, size: tuple[int, int], region: tuple | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Resizes an RGB image, or its region (left, top, right, bottom), to `size`, and crops the centre."""
        if self.is_native:
            return np.asarray(_resize(image, size, self.interpolation, region))
        round_half = math.floor if self.mode == "crop_floor" else round
        return np.asarray(center_crop(_resize(image, size, self.interpolation, region), self.size, round_half))

    def pack(self, pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "..."]:
        """Packs a preprocessed image as a row of a batch, uint8 of `shape`.

        With the mode "native", the row holds `1 + max_patches` patches: the first one the numbers of rows and columns of
        patches, as little-endian 16-bit numbers, then the image's, then zeros. Otherwise the row is the image itself.
        """
        if not self.is_native:
            return pixels
        grid = np.array(pixels.shape[:2], "<u2") // self.patch
        row = np.zeros((1 + self.max_patches, self.patch * self.patch * 3), np.uint8)
        row[0, :_GRID_BYTES] = grid.view(np.uint8)
        row[1 : 1 + math.prod(grid.tolist())] = cut_patches(pixels, self.patch)
        return row.reshape(self.shape)

    def normalize(self, batch):
        """Normalises a batch of packed images uint8 [n, *shape], a NumPy or JAX array, to the input of a model.

        Returns float32 [n, size, size, 3], or `Patches` with the mode "native".
        """
        if not self.is_native:
            return normalize(batch, self.mean, self.std)
        header = batch[:, 0].reshape(batch.shape[0], -1)[:, :_GRID_BYTES].astype(np.int32)
        pixels = normalize(batch[:, 1:], self.mean, self.std)
        return Patches(pixels.reshape(*pixels.shape[:2], -1), header[:, ::2] + 256 * header[:, 1::2])

    def batch(
        self,
        images: Sequence[Image.Image | np.ndarray | bytes | str | os.PathLike] | np.ndarray,
        start: int = 0,
        map_function: Callable = map,
    ) -> UInt8[np.ndarray, "n ..."]:
        """Preprocesses several images to uint8 [n, *shape]; errors name the path or the index.

        Args:
          start: index of the first image in error messages.
          map_function: function like `map`, such as that of a thread pool.
        """
        batch = np.empty((len(images), *self.shape), np.uint8)

        def fill_row(row: int) -> None:
            image = images[row]
            try:
                batch[row] = self.pack(self(image))
            except (BrokenSample, DataError) as error:
                name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {start + row}"
                message = str(error)
                raise type(error)(message if message.startswith(name) else f"{name}: {message}") from error

        for _ in map_function(fill_row, range(len(images))):
            pass
        return batch

    def to_json(self) -> str:
        """Formats the preprocessing as JSON, the content of `preprocess.json`."""
        fields = dataclasses.asdict(self)
        if not self.is_native:  # files and fingerprints from before the mode remain
            fields = {name: value for name, value in fields.items() if name not in ("patch", "max_patches")}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Preprocess":
        """Parses the output of `to_json`. Raises LoadError for other content."""
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
      preprocess: preprocessing of the model, applied last.
      scale: range of the area of a random resized crop, as a share of the image's area; (1, 1): no crop.
      flip: whether to flip images horizontally with probability 1/2. Captions such as "left of" may become false.
      papers: backgrounds, sizes and places of images with transparency, before the crop; None: white, as in evaluations.
      color_jitter: random changes of colours, after the crop; None: none.
    """

    preprocess: Preprocess
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    papers: Papers | None = None
    color_jitter: ColorJitter | None = None

    def __call__(self, image: bytes | str | os.PathLike, rng: np.random.Generator) -> UInt8[np.ndarray, "..."]:
        """Augments an image, given as bytes of a file or as a path, to a row of a batch (`Preprocess.pack`).

        Large JPEGs are decoded at a smaller scale (see `decode_region`), except for interpolations without antialiasing.
        Raises BrokenSample if the image cannot be decoded.
        """
        preprocess = self.preprocess

        def choose_region(width: int, height: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
            if self.scale == (1.0, 1.0):
                return (0, 0, width, height), preprocess.target_size(width, height)
            left, top, right, bottom = sample_crop(width, height, rng, scale=self.scale)
            return (left, top, right, bottom), preprocess.region_size(right - left, bottom - top)

        def convert(upright: Image.Image) -> Image.Image:
            has_paper = self.papers is not None and upright.has_transparency_data
            return self.papers.place(upright, rng) if has_paper else to_rgb(upright)

        is_antialiased = preprocess.interpolation in _ANTIALIASED
        decoded, region, size = decode_region(image, choose_region, may_shrink=is_antialiased, convert=convert)
        pixels = preprocess.resize_and_crop(decoded, size, region)
        if self.flip and rng.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return preprocess.pack(pixels if self.color_jitter is None else self.color_jitter(pixels, rng))


def normalize(images, mean: tuple[float, ...], std: tuple[float, ...]):
    """Normalises uint8 images [..., 3] to float32: `(x / 255 - mean) / std`, for NumPy and JAX arrays."""
    scale = np.asarray([1 / (255 * s) for s in std], np.float32)
    shift = np.asarray([m / s for m, s in zip(mean, std, strict=True)], np.float32)
    lead = (1,) * (images.ndim - 1)
    return images.astype(np.float32) * scale.reshape(*lead, 3) - shift.reshape(*lead, 3)
