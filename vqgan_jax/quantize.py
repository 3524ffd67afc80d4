"""Quantisers, which map latents to codes, with a common interface.

    quantized = quantizer(latents, train, temperature)     latents float32 [B, h, w, inputs]
    vectors = quantizer.embed(codes)                       float32 [B, h, w, dim]

`quantized.vectors` has the straight-through gradient with respect to the latents (arXiv 1308.3432). `quantized.loss` trains
the codebook and penalises the distance of latents from their codes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nn_jax.layers import l2_normalize, with_axis_names
from train_jax.options import Options, option


@flax.struct.dataclass
class Quantized:
    """Output of a quantiser.

    Attributes:
      vectors: quantised vectors float32 [B, h, w, dim], the decoder's input.
      codes: int32 [B, h, w].
      latents: float32 [B, h, w, inputs], normalised if the quantiser normalises latents.
      loss: codebook loss, to be added to the reconstruction loss.
      metrics: scalars by name.
    """

    vectors: jax.Array
    codes: jax.Array
    latents: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]


def _straight_through(z, q):
    return z + jax.lax.stop_gradient(q - z)


def _per_channel(values: jax.typing.ArrayLike, x: jax.Array) -> jax.Array:
    """Returns one value per channel with the leading axes of `x`, of size 1, so that both broadcast."""
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))


def nearest_codes(z: Float[Array, "*lead d"], codebook: Float[Array, "k d"]) -> Int[Array, "*lead"]:
    """Returns the index of the nearest codebook row for each vector; ties go to the lowest index."""
    squares = jnp.sum(codebook**2, axis=1)
    products = jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(_per_channel(squares, products) - 2 * products, axis=-1).astype(jnp.int32)


class Nearest(nn.Module):
    """Nearest-neighbour quantiser trained by gradient (arXiv 1711.00937, equation 3; 2012.09841, equation 4).

    Attributes:
      unit: whether latents and codes are normalised to unit norm (arXiv 2110.04627, section 3.1).
      beta: weight of the commitment loss, which moves latents towards their codes.
      legacy: whether beta weighs the codebook loss, which moves codes towards latents, as in taming's first releases.
    """

    size: int
    dim: int
    beta: float
    unit: bool
    legacy: bool

    @property
    def inputs(self) -> int:
        """Channels of the latents."""
        return self.dim

    def setup(self):
        """Makes the layers and parameters."""

        def init(key, shape):
            return jax.random.uniform(key, shape, minval=-1 / self.size, maxval=1 / self.size)

        self.codebook = self.param("codebook", with_axis_names(init, "codes", "embed"), (self.size, self.dim))

    def _points(self):
        return l2_normalize(self.codebook) if self.unit else self.codebook

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the vectors of codes."""
        return self._points()[codes]

    def __call__(self, z: Float[Array, "b h w d"], train: bool, temperature) -> Quantized:
        """Quantises latents to their nearest codes; `train` and `temperature` change nothing."""
        z = l2_normalize(z) if self.unit else z
        points = self._points()
        codes = nearest_codes(*jax.lax.stop_gradient((z, points)))
        q = points[codes]
        to_code = jnp.mean((z - jax.lax.stop_gradient(q)) ** 2)
        to_latent = jnp.mean((q - jax.lax.stop_gradient(z)) ** 2)
        loss = to_code + self.beta * to_latent if self.legacy else to_latent + self.beta * to_code
        return Quantized(_straight_through(z, q), codes, z, loss, {"commitment": to_code})


class Ema(nn.Module):
    """Nearest-neighbour quantiser whose codes are moving means of their latents (arXiv 1711.00937, appendix A.1).

    Codebook and statistics are in the collection `codebook`, which is not optimised but updated by
    `vqgan_jax.codebook.update_moving_means`.
    """

    size: int
    dim: int
    beta: float

    @property
    def inputs(self) -> int:
        """Channels of the latents."""
        return self.dim

    def setup(self):
        """Makes the layers and parameters."""

        def points():
            limit = 1 / self.size
            return jax.random.uniform(self.make_rng("params"), (self.size, self.dim), minval=-limit, maxval=limit)

        self.points = self.variable("codebook", "points", points)
        self.count = self.variable("codebook", "count", lambda: jnp.ones((self.size,)))
        self.total = self.variable("codebook", "total", lambda: self.points.value)

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the vectors of codes."""
        return self.points.value[codes]

    def __call__(self, z: Float[Array, "b h w d"], train: bool, temperature) -> Quantized:
        """Quantises latents to their nearest codes; `train` and `temperature` change nothing."""
        points = self.points.value
        codes = nearest_codes(jax.lax.stop_gradient(z), points)
        q = points[codes]
        commitment = jnp.mean((z - q) ** 2)
        return Quantized(_straight_through(z, q), codes, z, self.beta * commitment, {"commitment": commitment})


class Ibq(nn.Module):
    """Quantiser to the code of the largest dot product (IBQ, arXiv 2412.02692, section 3).

    The straight-through gradient passes through the probabilities of all codes, so that every code is trained.

    Attributes:
      beta: weight of the loss that moves codes towards latents.
      entropy, entropy_temperature: weight and temperature of the entropy loss, as in `Lfq`.
    """

    size: int
    dim: int
    beta: float
    entropy: float
    entropy_temperature: float

    @property
    def inputs(self) -> int:
        """Channels of the latents."""
        return self.dim

    def setup(self):
        """Makes the layers and parameters."""
        init = with_axis_names(nn.initializers.normal(1.0), "codes", "embed")
        self.codebook = self.param("codebook", init, (self.size, self.dim))

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the vectors of codes."""
        return self.codebook[codes]

    def __call__(self, z: Float[Array, "b h w d"], train: bool, temperature) -> Quantized:
        """Quantises latents to the codes of the largest products; `train` and `temperature` change nothing."""
        logits = jnp.matmul(z, self.codebook.T, precision=jax.lax.Precision.HIGHEST)
        codes = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        q = self.codebook[codes]
        one_hot = _straight_through(jax.nn.softmax(logits), jax.nn.one_hot(codes, self.size))
        vectors = one_hot @ self.codebook if train else q
        commitment = jnp.mean((z - jax.lax.stop_gradient(q)) ** 2)
        loss = jnp.mean((vectors - z) ** 2) + commitment + self.beta * jnp.mean((q - jax.lax.stop_gradient(z)) ** 2)
        log_probs = jax.nn.log_softmax(logits.reshape(-1, self.size) / self.entropy_temperature)
        sample_entropy, batch_entropy = _entropies(log_probs)
        loss += self.entropy * (sample_entropy - batch_entropy)
        metrics = {"commitment": commitment, "entropy_each": sample_entropy, "entropy_mean": batch_entropy}
        return Quantized(vectors, codes, z, loss, metrics)


def _entropies(log_probs: Float[Array, "n k"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the mean entropy per latent and the entropy of the mean distribution over codes, in nats."""
    probs = jnp.exp(log_probs)
    mean_probs = jnp.mean(probs, axis=0)
    return -jnp.mean(jnp.sum(probs * log_probs, axis=1)), -jnp.sum(mean_probs * jnp.log(jnp.maximum(mean_probs, 1e-12)))


class Gumbel(nn.Module):
    """Categorical quantiser with Gumbel-softmax relaxation in training (arXiv 1611.01144; 2102.12092, section 2.1).

    Attributes:
      kl_weight: weight of the KL divergence from the uniform distribution over codes.
    """

    size: int
    dim: int
    kl_weight: float

    @property
    def inputs(self) -> int:
        """Channels of the latents."""
        return self.dim

    def setup(self):
        """Makes the layers and parameters."""
        kernel = with_axis_names(nn.initializers.normal((3 * self.dim) ** -0.5), "channels_in", "codes")
        bias = with_axis_names(nn.initializers.zeros_init(), "codes")
        self.proj = nn.Dense(self.size, kernel_init=kernel, bias_init=bias)
        init = with_axis_names(nn.initializers.normal(1.0), "codes", "embed")
        self.codebook = self.param("codebook", init, (self.size, self.dim))

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the vectors of codes."""
        return self.codebook[codes]

    def __call__(self, z: Float[Array, "b h w d"], train: bool, temperature) -> Quantized:
        """Quantises latents: in training to a mixture by Gumbel noise at `temperature`, else to the likeliest codes."""
        logits = self.proj(z)
        q = jax.nn.softmax(logits)
        kl = jnp.mean(jnp.sum(q * jnp.log(q * self.size + 1e-10), axis=-1))
        if not train:
            codes = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return Quantized(self.codebook[codes], codes, z, self.kl_weight * kl, {"kl": kl})
        noise = jax.random.gumbel(self.make_rng("dropout"), logits.shape)
        soft = jax.nn.softmax((logits + noise) / temperature)
        codes = jnp.argmax(soft, axis=-1).astype(jnp.int32)
        hard = _straight_through(soft, jax.nn.one_hot(codes, self.size))
        return Quantized(hard @ self.codebook, codes, z, self.kl_weight * kl, {"kl": kl})


class Fsq(nn.Module):
    """Finite scalar quantiser, which rounds each channel to one of a few levels (arXiv 2309.15505, section 3.1)."""

    levels: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        """Dimension of a vector: the number of channels."""
        return len(self.levels)

    inputs = dim

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the vectors of codes, in [-1, 1]."""
        codes = codes[..., None]
        levels = np.asarray(self.levels)
        digits = codes // _per_channel(self._basis, codes) % _per_channel(levels, codes)
        half = _per_channel(levels // 2, codes)
        return ((digits - half) / half).astype(jnp.float32)

    def __call__(self, z: Float[Array, "b h w d"], train: bool, temperature) -> Quantized:
        """Rounds latents; `train` and `temperature` change nothing."""
        levels = np.asarray(self.levels)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        # Shifts a level to 0. With two levels 0 remains the boundary, because the gradient of a level at 0 would vanish.
        shift = np.where(levels > 2, np.arctanh(offset / half), 0.0)
        shift, half, offset = (_per_channel(x.astype(np.float32), z) for x in (shift, half, offset))
        bounded = jnp.tanh(z + shift) * half - offset
        rounded = _straight_through(bounded, jnp.round(bounded))
        width = _per_channel(levels // 2, z)
        digits = jnp.round(bounded).astype(jnp.int32) + width
        codes = jnp.sum(digits * _per_channel(self._basis, z), axis=-1).astype(jnp.int32)
        return Quantized(rounded / width.astype(jnp.float32), codes, z, jnp.zeros(()), {})


class Lfq(nn.Module):
    """Lookup-free quantiser: the sign of each channel is a bit of the code (arXiv 2310.05737, equations 3 to 6).

    Attributes:
      bits: number of bits of a code.
      beta: weight of the commitment loss, which moves latents towards -1 and 1.
      entropy: weight of the entropy loss: mean entropy per latent minus entropy of the mean distribution.
      entropy_temperature: temperature of the distributions over codes in the entropy loss; 0.01 in MaskGIT and
        Open-MAGVIT2.
    """

    bits: int
    beta: float
    entropy: float
    entropy_temperature: float

    @property
    def size(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def dim(self) -> int:
        """Dimension of a vector: the number of bits."""
        return self.bits

    inputs = dim

    def embed(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the vectors of codes, of -1 and 1."""
        return 2.0 * self._code_bits(codes) - 1.0

    def _code_bits(self, codes):
        codes = codes[..., None]
        return codes >> _per_channel(np.arange(self.bits), codes) & 1

    def __call__(self, z: Float[Array, "b h w d"], train: bool, temperature) -> Quantized:
        """Takes the signs of latents; `train` and `temperature` change nothing."""
        positive = z > 0
        q = jnp.where(positive, 1.0, -1.0)
        codes = jnp.sum(positive * _per_channel(1 << np.arange(self.bits), z), axis=-1).astype(jnp.int32)
        sample_entropy, batch_entropy = lfq_entropies(z.reshape(-1, self.bits), self.entropy_temperature)
        commitment = jnp.mean((z - q) ** 2)
        loss = self.beta * commitment + self.entropy * (sample_entropy - batch_entropy)
        metrics = {"commitment": commitment, "entropy_each": sample_entropy, "entropy_mean": batch_entropy}
        return Quantized(_straight_through(z, q), codes, z, loss, metrics)


def lfq_entropies(z: Float[Array, "n bits"], temperature: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the mean entropy per latent and the entropy of the mean distribution over codes, in nats.

    Code c has probability softmax(-|z - c|^2 / temperature), so the bits of a code are independent. The entropy per latent
    is a sum over bits. The mean distribution over 2^bits codes is the product of two matrices, with the probabilities of
    the upper and the lower half of the bits.
    """
    logits = 4 * z / temperature
    log_p1, log_p0 = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    sample_entropy = -jnp.mean(jnp.sum(jnp.exp(log_p1) * log_p1 + jnp.exp(log_p0) * log_p0, axis=1))

    def joint_probs(first: int, last: int):
        p = jnp.ones((z.shape[0], 1))
        for bit in range(first, last):
            bit_probs = jnp.exp(jnp.stack([log_p0[:, bit], log_p1[:, bit]], axis=1))
            p = (bit_probs[:, :, None] * p[:, None, :]).reshape(z.shape[0], -1)
        return p

    half = z.shape[1] // 2
    mean_probs = joint_probs(half, z.shape[1]).T @ joint_probs(0, half) / z.shape[0]
    return sample_entropy, -jnp.sum(mean_probs * jnp.log(jnp.maximum(mean_probs, 1e-12)))


# ---------------------------------------------------------------------------------------------------------------------
# Options


# Quantiser type -> `QuantizerOptions -> quantiser`.
QUANTIZERS: dict[str, Callable] = {
    "nearest": lambda o: Nearest(o.size, o.dim, o.beta, o.unit, o.legacy),
    "ema": lambda o: Ema(o.size, o.dim, o.beta),
    "ibq": lambda o: Ibq(o.size, o.dim, o.beta, o.entropy, o.entropy_temperature),
    "gumbel": lambda o: Gumbel(o.size, o.dim, o.kl_weight),
    "fsq": lambda o: Fsq(o.levels),
    "lfq": lambda o: Lfq(o.bits, o.beta, o.entropy, o.entropy_temperature),
}
WITH_CODEBOOK = {"nearest", "ema"}  # types with a codebook of points, whose dead codes can be revived


@dataclasses.dataclass(frozen=True)
class QuantizerOptions(Options):
    """Options of all quantisers; a quantiser type uses only some of the options."""

    type: str = option("nearest", "quantiser type", choices=QUANTIZERS)
    size: int = option(1024, "number of codes (fsq: product of levels; lfq: 2 ** bits)", least=2)
    dim: int = option(256, "dimension of a code (nearest, ema, ibq, gumbel)", least=1)
    unit: bool = option(False, "nearest: normalise codes and latents to unit norm; works best with dim 8 to 32")
    beta: float = option(
        0.25, "weight of the commitment loss (nearest, ema, lfq); ibq: of the codebook loss", least=0, identity=False
    )
    legacy: bool = option(False, "nearest: apply beta to the codebook loss, as in taming's first releases", identity=False)
    decay: float = option(0.99, "ema: decay of the moving means", above=0, below=1, identity=False)
    kl_weight: float = option(5e-4, "gumbel: weight of the KL divergence from uniform codes", least=0, identity=False)
    temperature: tuple[float, ...] = option(
        (1.0, 1 / 16), "gumbel: temperature at the first and the last update, geometric schedule", above=0, identity=False
    )
    levels: tuple[int, ...] = option((8, 5, 5, 5), "fsq: number of levels of each channel", least=2)
    bits: int = option(10, "lfq: number of bits of a code", least=1, most=20)
    entropy: float = option(0.1, "lfq, ibq: weight of the entropy loss", identity=False)
    entropy_temperature: float = option(
        0.01, "lfq, ibq: temperature of the distribution over codes in the entropy loss", above=0, identity=False
    )

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(not self.unit or self.type == "nearest", path, "unit", f"False for {self.type}")
        self.require(len(self.temperature) == 2, path, "temperature", "two positive numbers, first and last")
        self.require(bool(self.levels), path, "levels", "numbers of at least 2, such as (8, 5, 5, 5)")


def build(options: QuantizerOptions) -> nn.Module:
    """Builds the quantiser from its options."""
    return QUANTIZERS[options.type](options)


def temperature(ends: Sequence[float], step, steps: int):
    """Returns the Gumbel temperature at a step, geometrically interpolated between the two `ends`."""
    first, last = ends
    return first * (last / first) ** jnp.clip(step / max(steps - 1, 1), 0, 1)
