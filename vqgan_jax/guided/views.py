"""Views of a picture: the whole of it, and the places of prompt parts, of which a CLIP sees cutouts of their own.

What is outside of a place is grey before a cutout is made, so that gradients are exactly zero there: a crop inside the
place alone reads its neighbours where it antialiases, and cannot follow a mask. Crops are sampled in the bounding box of the
place, since crops of the whole picture would mostly be grey.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32
from PIL import Image

from train_jax.data.errors import BrokenSample
from train_jax.data.images import decode
from train_jax.errors import ConfigError
from vqgan_jax.guided.prompts import Part, Scene


class Views(NamedTuple):
    """Views of a painting, padded to the same number for all paintings of a batch.

    Attributes:
      masks: what each view shows of the picture, [S, H, W] in [0, 1].
      boxes: top, left, height and width of the bounding box in pixels, [S, 4].
      parts: whether a part [P] of the prompt is compared with a view, [S, P], 0 or 1.
      whole: whether a view is that of the whole picture, [S], 0 or 1: what is seen beside the prompt.
    """

    masks: jax.Array
    boxes: jax.Array
    parts: jax.Array
    whole: jax.Array


def make_views(scenes: Sequence[Scene], size: tuple[int, int], with_whole: bool) -> Views | None:
    """Makes the views of each scene (leading axis n); None if no part has a place.

    Args:
      with_whole: whether the whole picture is seen even if all parts have places.

    Raises BrokenSample for a mask that cannot be read, and ConfigError for a place without a pixel.
    """
    if all(_place(part) == (None, None) for scene in scenes for part in scene):
        return None
    whole = [(None, None)]
    places = [list(dict.fromkeys((whole if with_whole else []) + [_place(part) for part in scene])) for scene in scenes]
    masks = {place: _make_mask(*place, size) for row in places for place in row}
    count, max_parts = max(map(len, places)), max(map(len, scenes))
    parts, is_whole = np.zeros((len(scenes), count, max_parts), np.float32), np.zeros((len(scenes), count), np.float32)
    for i, (scene, row) in enumerate(zip(scenes, places, strict=True)):
        for j, part in enumerate(scene):
            parts[i, row.index(_place(part)), j] = 1
        is_whole[i, : len(row)] = [place in whole for place in row]
    shown = np.stack([np.stack([masks[row[min(i, len(row) - 1)]] for i in range(count)]) for row in places])
    boxes = np.stack([np.stack([_bounding_box(mask) for mask in row]) for row in shown])
    return Views(shown, boxes, parts, is_whole)


def _place(part: Part) -> tuple[tuple[float, ...] | None, str | None]:
    return part.place, part.mask


def _make_mask(box: tuple[float, ...] | None, file: str | None, size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    """Makes the mask of a place: of a box its pixels, whose edges are rounded; of a file its brightness."""
    height, width = size
    mask = np.ones(size, np.float32)
    if box is not None:
        left, top, right, bottom = (round(x * side) for x, side in zip(box, (width, height) * 2, strict=True))
        mask = np.zeros(size, np.float32)
        mask[top:bottom, left:right] = 1
    elif file is not None:
        try:
            image = decode(file)
        except BrokenSample as error:
            raise BrokenSample(f"mask={file}: {error}") from error
        mask = np.asarray(image.convert("L").resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    if not mask.any():
        name = f"mask={file} is black" if box is None else f"place={','.join(f'{x:g}' for x in box)} has no pixel"
        raise ConfigError(f"{name} in a picture of {height} x {width}: the part would see nothing; choose a larger place")
    return mask


def _bounding_box(mask: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "4"]:
    """Returns top, left, height and width of what is not 0."""
    (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis)).repeat(2) for axis in (1, 0))
    return np.array([top, left, bottom + 1 - top, right + 1 - left], np.float32)
