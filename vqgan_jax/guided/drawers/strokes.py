"""Sketches of smooth strokes: cubic Bézier curves with width, colour and opacity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.options import option
from vqgan_jax.guided.drawers import rasterise
from vqgan_jax.guided.drawers.drawer import Drawer, normal, uniform
from vqgan_jax.guided.options import parse_colour

_SEGMENTS = 12  # straight parts of a curve
_LENGTH = 0.1  # deviation of the next control point, in shorter sides
_OPAQUE = 2.0  # logit of the initial opacity


@dataclasses.dataclass(frozen=True)
class Strokes(Drawer):
    """Smooth strokes (cubic Bézier curves), a sketch."""

    count: int = option(64, "strokes", least=1)
    width: float = option(0.02, "initial width, as a fraction of the shorter side", above=0, most=1)
    ink: str = option("", "colour of all strokes; empty: each stroke has its own")
    ground: str = option("white", "colour of the background, or transparent")
    is_scalable = True

    def __post_init__(self):
        rasterise.check_ground(self.ground)
        if self.ink:
            parse_colour(self.ink)

    def init(self, size, seeds):
        """Draws control points, widths, colours and opacities."""
        n = self.count
        first = rasterise.spread(size, uniform(seeds, (n, 1, 2)))
        steps = normal(seeds, (n, 3, 2), _LENGTH / rasterise.POSITION, 1)
        z = {"points": np.cumsum(np.concatenate([first, steps], axis=2), axis=2), "width": normal(seeds, (n,), 0.2, 2)}
        z["opacity"] = _OPAQUE + normal(seeds, (n,), 0.2, 3)
        return z if self.ink else z | {"colour": normal(seeds, (n, 3), 1.0, 4)}

    def render(self, z, context):
        """Composites strokes with soft edges."""
        colours = jax.nn.sigmoid(z["colour"]) if not self.ink else jnp.tile(parse_colour(self.ink)[None], (self.count, 1))
        t = np.linspace(0, 1, _SEGMENTS + 1)[:, None]
        basis = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1).astype(np.float32)
        pixels = rasterise.pixel_positions(context.size)

        def opacity(stroke):
            curve = basis @ (rasterise.POSITION * stroke["points"])
            radius = self.width / 2 * jnp.exp(stroke["width"])
            depth = radius - rasterise.distance_to_segments(pixels, curve[:-1], curve[1:])
            return jax.nn.sigmoid(stroke["opacity"]) * rasterise.soften(depth, context.size)

        return rasterise.composite(opacity, z, colours, context.size, self.ground)

    def regularise(self, z, context):
        """Mean opacity of the strokes, times their relative width."""
        return jnp.mean(jax.nn.sigmoid(z["opacity"]) * jnp.exp(z["width"]))
