"""Fourier coefficients of decorrelated colours (Olah et al., Feature Visualization, 2017, as in lucid)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from train_jax.options import option
from vqgan_jax.guided.colour import correlate, decorrelate, to_logits
from vqgan_jax.guided.drawers.drawer import Drawer, normal

_CONTRAST = 0.25  # of coefficients of 1, in logits; lucid's


@dataclasses.dataclass(frozen=True)
class Fourier(Drawer):
    """Fourier coefficients of decorrelated colours; the picture tiles without a seam.

    Coefficients are those of the Hartley transform, the real minus the imaginary part: as many as pixels, and independent.
    """

    decay: float = option(1.0, "power of the frequency by which coefficients are divided", least=0)

    def init(self, size, seeds):
        """Draws coefficients float32 [n, H, W, 3]."""
        return normal(seeds, (*size, 3), 0.01)

    def encode(self, size, images, z):
        """Transforms pictures to coefficients, exactly."""
        return hartley(np, decorrelate(to_logits(np.asarray(images)))).astype(np.float32) / self.scale(size)

    def render(self, z, context):
        """Transforms coefficients to pixels."""
        return jax.nn.sigmoid(correlate(hartley(jnp, z * self.scale(context.size))))

    def regularise(self, z, context):
        """Mean square of the coefficients."""
        return jnp.mean(z**2)

    def scale(self, size: tuple[int, int]) -> Float32[np.ndarray, "H W 1"]:
        """Returns the amplitude of each coefficient, a power of its frequency in cycles per pixel."""
        frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])[..., None]
        return (_CONTRAST / np.maximum(frequency, 1 / max(size)) ** self.decay).astype(np.float32)


def hartley(numpy, x):
    """Computes the orthonormal Hartley transform over rows and columns, its own inverse, by `numpy` or `jax.numpy`."""
    transformed = numpy.fft.fft2(x, axes=(-3, -2), norm="ortho")
    return transformed.real - transformed.imag
