"""Implicit pictures: a small network from positions to colours, SIREN (arXiv 2006.09661) or a CPPN (Stanley, 2007)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.options import option
from vqgan_jax.guided.colour import correlate
from vqgan_jax.guided.drawers.drawer import Drawer, normal, uniform
from vqgan_jax.guided.drawers.rasterise import pixel_positions

_UNIT = 0.01  # weight of a parameter of 1: a step of 0.1 changes weights by 0.001


@dataclasses.dataclass(frozen=True)
class Implicit(Drawer):
    """A network from positions to colours, for pictures of any size: sine is a SIREN, tanh a CPPN."""

    width: int = option(64, "width of hidden layers", least=1)
    depth: int = option(3, "hidden layers", least=1)
    activation: str = option("sine", "activation of hidden layers", choices=("sine", "tanh"))
    frequency: float = option(12.0, "factor on positions: larger values give finer patterns", above=0)
    seamless: bool = option(False, "whether the picture tiles without a seam")
    is_scalable = True

    def init(self, size, seeds):
        """Draws weights of the network."""
        widths, z = [4 if self.seamless else 2, *[self.width] * self.depth, 3], {}
        for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            # SIREN's: uniform, with bound 1 / fan_in in the first layer and sqrt(6 / fan_in) in the others.
            bound = 1 / fan_in if i == 0 else np.sqrt(6 / fan_in)
            z[f"kernel{i}"] = (np.float32(bound / _UNIT) * (2 * uniform(seeds, (fan_in, fan_out), i) - 1)).astype(np.float32)
            z[f"bias{i}"] = normal(seeds, (fan_out,), 0.1 / _UNIT, 100 + i)
        return z

    def render(self, z, context):
        """Evaluates the network at each pixel."""
        positions = np.moveaxis(2 * pixel_positions(context.size), 0, -1)  # shorter side from -1 to 1
        if self.seamless:
            turns = 2 * np.pi * positions * min(context.size) / (2 * np.array(context.size[::-1]))
            positions = np.concatenate([np.cos(turns), np.sin(turns)], axis=-1)
        x = jnp.asarray(self.frequency * positions, jnp.float32).reshape(-1, positions.shape[-1])
        for i in range(self.depth + 1):
            x = x @ (_UNIT * z[f"kernel{i}"]) + (_UNIT * z[f"bias{i}"])[None]
            if i < self.depth:
                x = jnp.sin(x) if self.activation == "sine" else jnp.tanh(x)
        return jax.nn.sigmoid(correlate(x)).reshape(*context.size, 3)
