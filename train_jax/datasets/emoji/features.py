"""Handcrafted features of emoji: what is drawn, and in which style. No trained model has a part in them.

A picture is cut out of its paper. What is drawn is described by its silhouette, its colours on a coarse grid, and histograms
of oriented gradients (N. Dalal, B. Triggs, CVPR 2005); the style by a histogram of colours, since artists have palettes, by
the darkness along the silhouette (outlines), and by a histogram of gradients inside (flat or shaded).
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from scipy import ndimage

_SIDE = 32  # pixels of a picture that is cut out
_CELLS = 8  # cells of the grid in each direction
_ORIENTATIONS = 8
_DISTINCT = 0.1  # distance from the paper's colour, with channels in [0, 1]: half of it is paper, one and a half the picture
_SPECK = 0.02  # share of a row or column that is covered by noise alone
_LEVELS = 6  # levels of each channel in the histogram of colours
_DARKNESS = (0.15, 0.25, 0.4, 0.6)  # luminances below which pixels count as dark
_STEPS = (0, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 2)  # bins of the lengths of gradients
_EDGE = 2  # width of the silhouette's edge in pixels
# Luminance, red-green, yellow-blue.
_OPPONENT = np.array([[0.30, 0.59, 0.11], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]], np.float32)


def describe(image: UInt8[np.ndarray, "size size 3"]) -> Float[np.ndarray, "features"]:
    """Describes what a picture on a paper of any one colour shows: three parts of unit norm each."""
    pixels, cover = cut_out(image)
    opponent = (pixels * cover[..., None] + (1 - cover[..., None])) @ _OPPONENT.T  # on white, which is 0 below
    parts = [_average(cover[..., None] - 0.5), _average(opponent - _OPPONENT.sum(axis=1)), _orient(opponent[..., 0])]
    return np.concatenate([part.ravel() / (np.linalg.norm(part) + 1e-6) for part in parts]).astype(np.float32)


def describe_style(image: UInt8[np.ndarray, "size size 3"]) -> Float[np.ndarray, "features"]:
    """Describes how a picture on a paper of any one colour is drawn."""
    pixels, cover = cut_out(image)
    inside = cover > 0.5
    if not inside.any():
        inside = np.ones_like(inside)
    levels = (pixels[inside] * (_LEVELS - 1e-3)).astype(int) @ [_LEVELS**2, _LEVELS, 1]
    colours = np.sqrt(np.bincount(levels, minlength=_LEVELS**3) / len(levels))
    luminance = pixels @ _OPPONENT[0]
    core = ndimage.binary_erosion(inside, iterations=_EDGE)
    if not core.any():
        core = inside
    edge = inside & ~core if (inside & ~core).any() else inside
    darkness = [np.mean(luminance[edge] < limit) for limit in _DARKNESS]
    moments = [f(luminance[part]) for part in (edge, core) for f in (np.mean, np.std)]
    lengths = np.hypot(*np.gradient(ndimage.gaussian_filter(luminance, 0.7)))[core]
    gradients = np.histogram(lengths, _STEPS)[0] / len(lengths)
    saturation = np.ptp(pixels, axis=-1)[inside]
    rest = [saturation.mean(), saturation.std(), np.mean(saturation < 0.1), inside.mean()]
    return np.concatenate([colours, darkness, moments, gradients, rest]).astype(np.float32)


def cut_out(image: np.ndarray) -> tuple[Float[np.ndarray, "32 32 3"], Float[np.ndarray, "32 32"]]:
    """Cuts a picture out of its paper and resizes its longer side to 32 pixels; returns colours and opacity in [0, 1]."""
    smooth = np.asarray(Image.fromarray(image).filter(ImageFilter.MedianFilter(3)), np.float32) / 255  # of noisy papers
    paper = np.median(np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]]), axis=0)
    cover = np.clip(np.linalg.norm(smooth - paper, axis=-1) / _DISTINCT - 0.5, 0, 1)
    rows, columns = (np.flatnonzero((cover > 0.5).mean(axis=axis) > _SPECK) for axis in (1, 0))
    if not len(rows):
        rows, columns = (np.arange(side) for side in cover.shape)
    middle = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    radius = max(columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1) / 2
    # Transparent where the square around the picture leaves the image.
    layers = np.dstack([image, (255 * cover).astype(np.uint8)])
    margin = int(radius) + 1
    canvas = Image.fromarray(np.pad(layers, ((margin, margin), (margin, margin), (0, 0))))
    box = [x + margin for x in (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)]
    square = np.asarray(canvas.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box), np.float32) / 255
    return square[..., :3], square[..., 3]


def _average(values: Float[np.ndarray, "32 32 channels"]) -> Float[np.ndarray, "8 8 channels"]:
    """Averages values over each cell of the grid."""
    side = _SIDE // _CELLS
    return values.reshape(_CELLS, side, _CELLS, side, -1).mean(axis=(1, 3))


def _orient(luminance: Float[np.ndarray, "32 32"]) -> Float[np.ndarray, "8 8 8"]:
    """Computes a histogram of oriented gradients in each cell, with square roots of their lengths.

    Orientations are those of edges, without the sign: between two neighbouring ones, a gradient counts for both in part.
    """
    down, right = np.gradient(luminance)
    position = np.arctan2(down, right) % np.pi * (_ORIENTATIONS / np.pi)
    low = np.floor(position).astype(int)
    weight, length = position - low, np.sqrt(np.hypot(down, right))
    one_hot = np.eye(_ORIENTATIONS, dtype=np.float32)
    shares = one_hot[low % _ORIENTATIONS] * (1 - weight)[..., None] + one_hot[(low + 1) % _ORIENTATIONS] * weight[..., None]
    return _average(shares * length[..., None])
