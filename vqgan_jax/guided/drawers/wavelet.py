"""Wavelet coefficients of decorrelated colours: Daubechies' orthonormal wavelets of four taps, periodic at the borders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.options import option
from vqgan_jax.guided.colour import correlate, decorrelate, to_logits
from vqgan_jax.guided.drawers.drawer import Drawer, normal

_LOW = (np.array([1, 3, 3, 1]) + np.sqrt(3) * np.array([1, 1, -1, -1])) / (4 * np.sqrt(2))
_HIGH = _LOW[::-1] * [1, -1, 1, -1]


@dataclasses.dataclass(frozen=True)
class Wavelet(Drawer):
    """Wavelet coefficients of decorrelated colours; the picture tiles without a seam."""

    levels: int = option(4, "levels: sides are halved at each and must be divisible by 2^levels", least=1, most=10)
    decay: float = option(1.0, "power of two by which details shrink from a level to the next finer one", least=0)

    @property
    def factor(self):
        """Sides must be multiples of it."""
        return 2**self.levels

    def init(self, size, seeds):
        """Draws coefficients of each level."""
        shapes = self.shapes(size)
        return {name: normal(seeds, shape, 0.01, stream) for stream, (name, shape) in enumerate(shapes.items())}

    def encode(self, size, images, z):
        """Transforms pictures to coefficients, exactly."""
        x, z = decorrelate(to_logits(np.asarray(images))), {}
        for level in range(self.levels):
            x, *details = (band for half in analyse(x, -3) for band in analyse(half, -2))
            z[f"details{level}"] = (np.stack(details, axis=-2) / self.scale(level)).astype(np.float32)
        return z | {"coarse": (x / self.scale(self.levels)).astype(np.float32)}

    def render(self, z, context):
        """Transforms coefficients to pixels."""
        x = z["coarse"] * self.scale(self.levels)
        for level in reversed(range(self.levels)):
            bands = z[f"details{level}"] * self.scale(level)
            x = synthesise(synthesise(x, bands[..., 0, :], -2), synthesise(bands[..., 1, :], bands[..., 2, :], -2), -3)
        return jax.nn.sigmoid(correlate(x))

    def regularise(self, z, context):
        """Mean magnitude of the details, over all levels."""
        return sum(jnp.mean(jnp.abs(z[f"details{level}"])) for level in range(self.levels)) / self.levels

    def shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the parameters: at each level three bands of details, and the coarsest picture."""
        halves = [(size[0] >> level, size[1] >> level) for level in range(1, self.levels + 1)]
        return {f"details{i}": (*half, 3, 3) for i, half in enumerate(halves)} | {"coarse": (*halves[-1], 3)}

    def scale(self, level: int) -> float:
        """Returns the amplitude of the coefficients of a level; the finest is 0."""
        return 2.0 ** (self.decay * level)


def analyse(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes low and high band along an axis, each of half the length: products with every second shift of the filters."""
    x = np.moveaxis(x, axis, 0)
    shifts = [np.roll(x, -i, axis=0)[::2] for i in range(4)]
    bands = (sum(tap * shift for tap, shift in zip(taps, shifts, strict=True)) for taps in (_LOW, _HIGH))
    low, high = (np.moveaxis(band, 0, axis) for band in bands)
    return low, high


def synthesise(low: jax.Array, high: jax.Array, axis: int) -> jax.Array:
    """Inverts `analyse`, by its transpose."""
    low, high = jnp.moveaxis(low, axis, 0), jnp.moveaxis(high, axis, 0)
    before = jnp.roll(low, 1, axis=0), jnp.roll(high, 1, axis=0)
    a, b = _LOW.astype(np.float32), _HIGH.astype(np.float32)
    phases = [a[i] * low + b[i] * high + a[i + 2] * before[0] + b[i + 2] * before[1] for i in (0, 1)]
    return jnp.moveaxis(jnp.stack(phases, axis=1).reshape(-1, *low.shape[1:]), 0, axis)
