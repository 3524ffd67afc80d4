"""Rendering of scenes at any size with antialiased edges, by signed distance functions.

Distance functions after I. Quilez, "2D distance functions" (the formulas are elementary geometry).
"""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from train_jax.datasets.shapes.scene import COLOURS, Object, Scene

PALETTE = {
    "red": (220, 30, 30), "orange": (245, 140, 20), "yellow": (240, 215, 30), "green": (40, 160, 60),
    "cyan": (40, 200, 215), "blue": (40, 70, 210), "purple": (130, 50, 170), "pink": (245, 130, 185),
    "brown": (125, 75, 40), "black": (25, 25, 25),
}  # fmt: skip

_TURN = np.arange(10) * np.pi / 5
_STAR = np.stack([np.sin(_TURN), -np.cos(_TURN)], -1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
_TRIANGLE = np.array([(0.0, -1.0), (0.9, 0.75), (-0.9, 0.75)])
_ROUND = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_HEART = (
    np.stack(
        [
            16 * np.sin(_ROUND) ** 3,
            -(13 * np.cos(_ROUND) - 5 * np.cos(2 * _ROUND) - 2 * np.cos(3 * _ROUND) - np.cos(4 * _ROUND)),
        ],
        -1,
    )
    / 17
)  # the well-known heart curve, scaled to the unit circle


def render(scene: Scene, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """Renders a scene to `size` x `size` pixels. `rng` samples the background and small colour variations."""
    canvas = np.ones((size, size, 3)) * (rng.uniform(0.72, 0.97) + rng.uniform(-0.03, 0.03, 3))
    if scene.background == "noisy":
        ramp = (np.arange(size) + 0.5) / size - 0.5
        slope = rng.uniform(-0.12, 0.12, 2)
        canvas += (slope[0] * ramp[:, None] + slope[1] * ramp[None, :])[..., None]
        canvas += rng.normal(0, rng.uniform(0.01, 0.05), canvas.shape)
    for o in scene.objects:
        colour = np.clip(np.array(PALETTE[o.colour]) / 255 + rng.uniform(-0.04, 0.04, 3), 0, 1)
        # Restrict the computation to the bounding box of the object.
        top, left = (max(int((c - o.radius) * size) - 2, 0) for c in (o.y, o.x))
        bottom, right = (min(int((c + o.radius) * size) + 3, size) for c in (o.y, o.x))
        cover = coverage(o, size, (top, bottom), (left, right))[..., None]
        canvas[top:bottom, left:right] = canvas[top:bottom, left:right] * (1 - cover) + colour * cover
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def coverage(o: Object, size: int, rows: tuple[int, int], columns: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Computes the share of each pixel that an object covers, in a window of an image of `size` x `size` pixels."""
    scale = size * o.radius
    y = ((np.arange(*rows) + 0.5) - o.y * size)[:, None] / scale
    x = ((np.arange(*columns) + 0.5) - o.x * size)[None, :] / scale
    cos, sin = np.cos(o.angle), np.sin(o.angle)
    return np.clip(0.5 - scale * distance(o.shape, x * cos + y * sin, y * cos - x * sin), 0, 1)


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Computes the signed distance (negative inside) of points to the outline of a shape in the unit circle."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.8
    if shape == "diamond":
        return (1.3 * abs(x) + abs(y) - 1) / np.hypot(1.3, 1)
    if shape == "cross":
        upright = np.maximum(abs(x) - 0.3, abs(y) - 0.95)
        return np.minimum(upright, np.maximum(abs(x) - 0.95, abs(y) - 0.3))
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.72) - 0.24
    return _polygon_distance(x, y, {"triangle": _TRIANGLE, "star": _STAR, "heart": _HEART}[shape])


def _polygon_distance(x: np.ndarray, y: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Computes the signed distance of points to a polygon, negative inside."""
    a, b = vertices, np.roll(vertices, 1, axis=0)  # the ends of each edge
    (ax, ay), (bx, by) = a.T[:, :, None, None], b.T[:, :, None, None]  # edges before rows and columns
    ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    squared_distances = (px - ex * along) ** 2 + (py - ey * along) ** 2
    # Even-odd rule: edges that a ray to the right crosses.
    crosses = ((ay > y) != (by > y)) & (px < ex * py / np.where(ey, ey, 1.0))
    return np.where(np.logical_xor.reduce(crosses), -1, 1) * np.sqrt(squared_distances.min(axis=0))


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


assert set(PALETTE) == set(COLOURS)
