"""Layers with alpha, each with colours and an opacity by another drawer, for transparent pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.options import option
from vqgan_jax.guided import drawers
from vqgan_jax.guided.drawers.drawer import Drawer

_INNER = ("pixel", "grid", "fourier", "wavelet", "implicit")  # drawers of RGB
_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Layers(Drawer):
    """Layers with alpha, the first in front; the picture is transparent where all are."""

    count: int = option(2, "layers", least=1, most=16)
    of: str = option("fourier", "drawer of each layer's colours and of its opacity, with default options", choices=_INNER)

    @property
    def inner(self) -> Drawer:
        """Drawer of the colours of a layer; that of its opacity is the same, whose channels are averaged."""
        return drawers.find(self.of)()

    @property
    def factor(self):
        """That of the inner drawer."""
        return self.inner.factor

    @property
    def is_scalable(self):
        """As the inner drawer."""
        return self.inner.is_scalable

    def init(self, size, seeds):
        """Draws parameters of the inner drawer, for colour and opacity of each layer."""
        sequences = [np.random.SeedSequence((seed, i)) for seed in seeds for i in range(2 * self.count)]
        inner_seeds = [int(sequence.generate_state(1)[0]) for sequence in sequences]
        return self._stack(self.inner.init(size, inner_seeds), len(seeds))

    def encode(self, size, images, z):
        """Encodes pictures as the last layer, with half transparent copies in front."""
        images = np.asarray(images)
        opacity = np.full((len(images), self.count, *images.shape[1:]), 0.5, np.float32)
        opacity[:, -1] = 1.0
        targets = np.stack([np.repeat(images[:, None], self.count, axis=1), opacity], axis=1)  # [n, 2, count, H, W, 3]
        start = jax.tree.map(lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[2:]), z["colour"], z["opacity"])
        return self._stack(self.inner.encode(size, targets.reshape(-1, *images.shape[1:]), start), len(images))

    def render(self, z, context):
        """Composites layers to RGBA."""
        render = jax.vmap(lambda z: self.inner.render(z, context))
        colours, opacities = render(z["colour"]), jnp.mean(render(z["opacity"]), axis=-1, keepdims=True)
        pixels, light = jnp.zeros_like(colours[0]), jnp.ones_like(opacities[0])
        for layer in range(self.count):
            pixels = pixels + light * opacities[layer] * colours[layer]
            light = light * (1 - opacities[layer])
        return jnp.concatenate([pixels / jnp.maximum(1 - light, _EPS), 1 - light], axis=-1)

    def regularise(self, z, context):
        """Mean opacity of the layers."""
        return jnp.mean(jax.vmap(lambda z: self.inner.render(z, context))(z["opacity"]))

    def _stack(self, z, n: int):
        """Divides parameters [n * 2 * count, …] into those of colours and of opacities, each [n, count, …]."""
        halves = jax.tree.map(lambda x: x.reshape(n, 2, self.count, *x.shape[1:]), z)
        return {name: jax.tree.map(lambda x: x[:, i], halves) for i, name in enumerate(("colour", "opacity"))}  # noqa: B023
