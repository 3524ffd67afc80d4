"""Polygons with colour and opacity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.options import option
from vqgan_jax.guided.drawers import rasterise
from vqgan_jax.guided.drawers.drawer import Drawer, normal, uniform


@dataclasses.dataclass(frozen=True)
class Polygons(Drawer):
    """Filled polygons."""

    count: int = option(48, "polygons", least=1)
    corners: int = option(5, "corners of each polygon", least=3, most=64)
    radius: float = option(0.12, "initial radius, as a fraction of the shorter side", above=0, most=1)
    ground: str = option("white", "colour of the background, or transparent")
    is_scalable = True

    def __post_init__(self):
        rasterise.check_ground(self.ground)

    def init(self, size, seeds):
        """Draws corners, colours and opacities."""
        n, radius = self.count, self.radius / rasterise.POSITION
        angles = 2 * np.pi * (uniform(seeds, (n, 1), 1) + np.arange(self.corners, dtype=np.float32) / self.corners)
        corners = radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return {
            "corners": rasterise.spread(size, uniform(seeds, (n, 1, 2))) + corners.astype(np.float32),
            "opacity": normal(seeds, (n,), 0.2, 2),
            "colour": normal(seeds, (n, 3), 1.0, 3),
        }

    def render(self, z, context):
        """Composites polygons with soft edges."""
        pixels = rasterise.pixel_positions(context.size)

        def opacity(polygon):
            depth = rasterise.depth_in_polygon(pixels, rasterise.POSITION * polygon["corners"])
            return jax.nn.sigmoid(polygon["opacity"]) * rasterise.soften(depth, context.size)

        return rasterise.composite(opacity, z, jax.nn.sigmoid(z["colour"]), context.size, self.ground)

    def regularise(self, z, context):
        """Mean opacity of the polygons."""
        return jnp.mean(jax.nn.sigmoid(z["opacity"]))
