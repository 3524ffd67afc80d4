"""Raw pixels."""

import dataclasses

import jax
import numpy as np

from vqgan_jax.guided.colour import to_logits
from vqgan_jax.guided.drawers.drawer import Drawer, normal


@dataclasses.dataclass(frozen=True)
class Pixels(Drawer):
    """Raw pixels, as logits."""

    def init(self, size, seeds):
        """Draws logits float32 [n, H, W, 3]."""
        return normal(seeds, (*size, 3), 0.1)

    def encode(self, size, images, z):
        """Converts pixels to logits."""
        return to_logits(np.asarray(images))

    def render(self, z, context):
        """Converts logits to pixels."""
        return jax.nn.sigmoid(z)
