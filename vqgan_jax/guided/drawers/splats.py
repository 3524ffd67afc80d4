"""2-D Gaussian splats: ellipses with soft edges (Kerbl et al., arXiv 2308.04079, in the plane)."""

import dataclasses

import jax
import jax.numpy as jnp

from train_jax.options import option
from vqgan_jax.guided.drawers import rasterise
from vqgan_jax.guided.drawers.drawer import Drawer, normal, uniform

_BLUR = 0.3  # pixels: variance added to each splat, so that none falls between pixels


@dataclasses.dataclass(frozen=True)
class Splats(Drawer):
    """Gaussian splats."""

    count: int = option(256, "splats", least=1)
    radius: float = option(0.04, "initial deviation, as a fraction of the shorter side", above=0, most=1)
    ground: str = option("white", "colour of the background, or transparent")
    is_scalable = True

    def __post_init__(self):
        rasterise.check_ground(self.ground)

    def init(self, size, seeds):
        """Draws centres, scales, angles, colours and opacities."""
        n = self.count
        return {
            "centre": rasterise.spread(size, uniform(seeds, (n, 1, 2)))[:, :, 0],
            "scale": normal(seeds, (n, 2), 0.2, 1),
            "angle": normal(seeds, (n,), 1.0, 2),
            "opacity": normal(seeds, (n,), 0.2, 3),
            "colour": normal(seeds, (n, 3), 1.0, 4),
        }

    def render(self, z, context):
        """Composites splats."""
        pixels = rasterise.pixel_positions(context.size)

        def opacity(splat):
            cos, sin = jnp.cos(splat["angle"]), jnp.sin(splat["angle"])
            x, y = pixels - rasterise.POSITION * splat["centre"][:, None, None]
            variances = (self.radius * jnp.exp(splat["scale"])) ** 2 + (_BLUR / min(context.size)) ** 2
            squares = (cos * x + sin * y) ** 2 / variances[0] + (cos * y - sin * x) ** 2 / variances[1]
            return jax.nn.sigmoid(splat["opacity"]) * jnp.exp(-squares / 2)

        return rasterise.composite(opacity, z, jax.nn.sigmoid(z["colour"]), context.size, self.ground)

    def regularise(self, z, context):
        """Mean opacity of the splats."""
        return jnp.mean(jax.nn.sigmoid(z["opacity"]))
