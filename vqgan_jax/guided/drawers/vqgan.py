"""Latents of a VQGAN, quantised to codes and decoded: VQGAN+CLIP (arXiv 2204.08583)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from train_jax.errors import ConfigError
from vqgan_jax.guided import latents, starts
from vqgan_jax.guided.drawers.drawer import Context, Drawer
from vqgan_jax.model import Autoencoder
from vqgan_jax.vqgan import Vqgan


class Weights(NamedTuple):
    """Weights of the VQGAN, and the vectors of its codes."""

    vqgan: Any
    codebook: latents.Codebook


@dataclasses.dataclass(frozen=True)
class VqganLatents(Drawer):
    """Latents of a VQGAN: vectors, or logits of codes.

    Attributes:
      latents: parametrisation, see `guided.latents`.
      vq: the loaded VQGAN; None in keys of compiled programs.
    """

    module: Autoencoder
    latents: str
    vq: Vqgan | None = dataclasses.field(default=None, compare=False)

    @property
    def factor(self) -> int:
        """Pixels per side of a code."""
        return self.module.factor

    @functools.cached_property
    def weights(self) -> Weights:
        """Raises ConfigError if the latents need code vectors, which the dVAE has not."""
        codebook = latents.codebook_vectors(self.module, self.vq.variables)
        if self.latents == "straight" and codebook is None:
            raise ConfigError("latents = 'straight' needs code vectors, and the dVAE has none: use 'soft' or 'gumbel'")
        return Weights(self.vq.variables, codebook)

    def without_weights(self) -> "VqganLatents":
        """Returns the drawer without the VQGAN, for compiled programs, which get weights as arguments."""
        return dataclasses.replace(self, vq=None)

    def init(self, size: tuple[int, int], seeds: Sequence[int]) -> jax.Array:
        """Draws random codes as latents."""
        grid = (size[0] // self.factor, size[1] // self.factor)
        return self.from_codes(np.stack([starts.sample_codes(seed, grid, self.vq.num_codes) for seed in seeds]))

    def encode(self, size: tuple[int, int], images: Float32[np.ndarray, "n H W 3"], z: Any) -> jax.Array:
        """Encodes pictures as latents."""
        return self.from_codes(self.vq.encode(images))

    def from_codes(self, codes: Int32[np.ndarray, "n h w"]) -> jax.Array:
        """Returns latents [n, h, w, x] that are quantised to `codes`."""
        return latents.from_codes(self.latents, codes, self.weights.codebook, self.vq.num_codes)

    def render(self, z: jax.Array, context: Context) -> jax.Array:
        """Decodes latents: of sampled codes with `context.key`, else of the likeliest ones."""
        variables, codebook = context.weights
        if context.key is None:
            quantized = latents.quantize_greedily(self.latents, z, codebook, context.temperature)
        else:
            quantized = latents.quantize(self.latents, z, codebook, context.temperature, context.key)
        return (self.module.apply(variables, quantized[None], method="decode_vectors")[0] + 1) / 2

    def project(self, z: jax.Array, context: Context) -> jax.Array:
        """Clips latents to the range of the codebook."""
        return latents.clip_to_codebook(self.latents, z, context.weights.codebook)

    def codes(self, z: jax.Array, context: Context) -> jax.Array:
        """Returns the codes int32 [h, w] of latents."""
        return latents.to_codes(self.latents, z, context.weights.codebook)

    def probabilities(self, z: jax.Array, context: Context, spacing: jax.Array | None) -> jax.Array:
        """Returns the probabilities [h, w, k] of the codes, as `latents.probabilities`."""
        return latents.probabilities(
            self.latents, z, context.weights.codebook, context.temperature, context.key, spacing
        )
