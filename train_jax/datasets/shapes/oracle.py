"""Oracle that recognises the objects of a scene in an image, for the evaluation of generative models.

A plane is fitted to the colours of the light, unsaturated background. Regions that differ from the plane are objects. The
colour of an object is the nearest colour of the palette; its shape is the one whose rendering differs least.
"""

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from train_jax.datasets.shapes.render import PALETTE, coverage
from train_jax.datasets.shapes.scene import SHAPES, Object

_DIFFERENT = 0.2  # minimum colour distance of objects from the background, with channels in [0, 1]
_SMALLEST = 0.008  # minimum area of an object as a share of the image
_ANGLES = np.linspace(-0.2, 0.2, 5)
_GRID = 64  # side in pixels of the renderings that measure area and centroid of each shape


def _measure(shape: str, angle: float) -> tuple[float, float, float]:
    """Computes area and centroid of a shape of radius 1."""
    o = Object("red", shape, 0.5, 0.5, 0.4, angle)
    cover = coverage(o, _GRID, (0, _GRID), (0, _GRID))
    ticks = ((np.arange(_GRID) + 0.5) / _GRID - 0.5) / 0.4
    area = cover.sum()
    cx, cy = (cover.sum(0) * ticks).sum() / area, (cover.sum(1) * ticks).sum() / area
    return area / (_GRID * 0.4) ** 2, cx, cy


_MEASURES = {(shape, angle): _measure(shape, angle) for shape in SHAPES for angle in _ANGLES}
_NAMES = tuple(PALETTE)
_COLOURS = np.array([PALETTE[name] for name in _NAMES]) / 255


def read(image: UInt8[np.ndarray, "size size 3"]) -> tuple[Object, ...]:
    """Recognises the objects in a square image, largest first; empty if there are no objects."""
    size = image.shape[0]
    pixels = image / 255
    smooth = ndimage.uniform_filter(pixels, (3, 3, 1)) if size >= 48 else pixels
    background = _background(smooth)
    different = np.linalg.norm(smooth - background, axis=-1) > _DIFFERENT
    labels, count = ndimage.label(different)
    areas = ndimage.sum_labels(different, labels, np.arange(1, count + 1)) if count else np.zeros(0)
    parts = [1 + i for i in np.argsort(-areas) if areas[i] >= _SMALLEST * size**2]
    objects = (_recognise(pixels, background, labels == part) for part in parts)
    return tuple(o for o in objects if o is not None)


def _background(pixels: np.ndarray) -> np.ndarray:
    """Fits a plane to the colours of the background: first to pixels near the median, then to pixels near the plane."""
    size = pixels.shape[0]
    ramp = (np.arange(size) + 0.5) / size - 0.5
    design = np.stack(np.broadcast_arrays(np.ones((size, size)), ramp[:, None], ramp[None, :]), -1).reshape(-1, 3)
    flat = pixels.reshape(-1, 3)
    # Start from the median of the lighter, greyer half of the pixels, since objects are dark or saturated.
    value = flat.min(axis=1)
    estimate = np.median(flat[value >= np.median(value)], axis=0)[None, :]
    for threshold in (_DIFFERENT, _DIFFERENT / 2):
        is_background = np.linalg.norm(flat - estimate, axis=1) < threshold
        if is_background.sum() < design.shape[1]:  # fewer pixels than a plane has coefficients: an image of no scene
            break
        coefficients = np.linalg.lstsq(design[is_background], flat[is_background], rcond=None)[0]
        estimate = design @ coefficients
    return np.broadcast_to(estimate, flat.shape).reshape(pixels.shape)


def _recognise(pixels: np.ndarray, background: np.ndarray, part: np.ndarray) -> Object | None:
    """Recognises colour, shape, position, radius and angle of the object in a region, a mask `part`.

    Returns None if the region's median colour is that of the background, as in images that are no scenes.
    """
    size = pixels.shape[0]
    core = ndimage.binary_erosion(part)
    colour = np.median(pixels[core if core.sum() >= 5 else part], axis=0)
    name = _NAMES[int(np.argmin(np.linalg.norm(_COLOURS - colour, axis=1)))]

    # Coverage of each pixel: the position of its colour on the line from background colour to object colour.
    line = colour - background
    cover = np.clip(((pixels - background) * line).sum(-1) / np.maximum((line**2).sum(-1), 1e-9), 0, 1)
    cover = np.where(ndimage.binary_dilation(part, iterations=2), cover, 0)
    ticks = (np.arange(size) + 0.5) / size
    area = cover.sum()
    if not area:
        return None
    x, y = (cover.sum(0) * ticks).sum() / area, (cover.sum(1) * ticks).sum() / area
    rows, columns = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
    window = [(max(int(r[0]) - 2, 0), min(int(r[-1]) + 3, size)) for r in (rows, columns)]
    window_cover = cover[slice(*window[0]), slice(*window[1])]

    best, least_error = None, np.inf
    for (shape, angle), (unit_area, cx, cy) in _MEASURES.items():
        radius = np.sqrt(area / unit_area) / size
        candidate = Object(name, shape, x - cx * radius, y - cy * radius, radius, angle)
        error = ((coverage(candidate, size, *window) - window_cover) ** 2).sum()
        if error < least_error:
            best, least_error = candidate, error
    return best
