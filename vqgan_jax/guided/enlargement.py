"""Enlargement of finished pictures: options of the steps at the larger size, and reconstruction in tiles without steps."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from vqgan_jax.guided import starts
from vqgan_jax.guided.options import Options

_OVERLAP = 1 / 4  # of neighbouring tiles, at least, in sides of a tile


def enlarge_images(images: Float32[np.ndarray, "n h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "n H W 3"]:
    """Resizes images in [0, 1] by Lanczos' filter."""
    return np.stack([starts.load_image(image, size, "image") for image in np.clip(images, 0, 1)])


def enlarge_options(o: Options, size: tuple[int, int]) -> Options:
    """Returns the options of the steps at the larger size, all of which are done, with the schedules at their ends."""
    canvas = dataclasses.replace(o.canvas, size=size, aspect=None, scale=1.0)
    schedule = dataclasses.replace(o.schedule, steps=o.schedule.steps + o.enlarge.enlarge_steps)
    optimization, probabilities = o.optimization, o.probabilities
    if o.rate_decay is not None:
        optimization = dataclasses.replace(optimization, lr=optimization.lr * o.rate_decay.lr_decay)
    if probabilities is not None and probabilities.temperature_end:
        probabilities = dataclasses.replace(probabilities, temperature=probabilities.temperature_end, temperature_end=0.0)
    return dataclasses.replace(
        o, canvas=canvas, schedule=schedule, optimization=optimization, rate_decay=None, probabilities=probabilities,
        enlarge=None, auto_stop=None,
    )  # fmt: skip


def reconstruct_in_tiles(
    images: Float32[np.ndarray, "n H W 3"],
    size: tuple[int, int],
    reconstruct: Callable[[np.ndarray], np.ndarray],
) -> Float32[np.ndarray, "n H W c"]:
    """Reconstructs images in overlapping tiles, whose weights fall linearly from the middle of a tile to its edges.

    Args:
      size: height and width of a tile, at most those of the images.
      reconstruct: function of tiles [n, h, w, 3] -> [n, h, w, c].
    """
    total, total_weight = 0.0, np.zeros(images.shape[1:3], np.float32)
    ramps = [np.minimum(np.arange(side) + 1, side - np.arange(side)).astype(np.float32) / side for side in size]
    weight = ramps[0][:, None] * ramps[1][None]
    for top, left in itertools.product(*map(tile_starts, images.shape[1:3], size)):
        place = slice(top, top + size[0]), slice(left, left + size[1])
        tiles = reconstruct(images[:, *place])
        if not total_weight.any():
            total = np.zeros((*images.shape[:3], tiles.shape[-1]), np.float32)
        total[:, *place] += weight[..., None] * tiles
        total_weight[place] += weight
    return total / total_weight[..., None]


def tile_starts(length: int, tile: int) -> list[int]:
    """Returns where tiles begin along a side, evenly, so that neighbours overlap by a quarter or more."""
    count = math.ceil((length - _OVERLAP * tile) / ((1 - _OVERLAP) * tile))
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]
