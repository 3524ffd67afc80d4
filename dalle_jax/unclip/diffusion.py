"""Gaussian diffusion (DDPM, arXiv 2006.11239): noise schedules, the forward process, predictions, training losses.

    x_t = signal_t x_0 + sigma_t noise,    signal_t^2 = alpha_bar_t,    sigma_t^2 = 1 - alpha_bar_t

Timesteps are 0 (almost clean) to T - 1 (almost noise). All functions are pure; tables are computed in float64 and read in
float32. `dalle_jax.unclip.samplers` reverses the process.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Float64, Int

from train_jax.options import Options, option

_MAX_BETA = 0.999  # of the cosine schedule, whose last beta would be 1
_NATS_PER_BIT = math.log(2)
_PIXEL_STEP = 2 / 255  # distance of neighbouring uint8 values in [-1, 1]


def cosine_betas(timesteps: int) -> Float64[np.ndarray, "T"]:
    """Computes the cosine schedule, capped at 0.999 (arXiv 2102.09672, section 3.2; `squaredcos_cap_v2` elsewhere)."""
    alpha_bar = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], _MAX_BETA)


def linear_betas(timesteps: int) -> Float64[np.ndarray, "T"]:
    """Computes the linear schedule (arXiv 2006.11239, section 4), scaled to keep the total noise for any T."""
    return np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps


SCHEDULES = {"cosine": cosine_betas, "linear": linear_betas}


@dataclasses.dataclass(frozen=True)
class Diffusion(Options):
    """Options of a diffusion process, and of what its network predicts."""

    schedule: str = option("cosine", "noise schedule", choices=SCHEDULES)
    timesteps: int = option(1000, "number of timesteps in training", least=2)
    prediction: str = option(
        "epsilon",
        "output of the network: clean data, noise, or velocity (arXiv 2202.00512, appendix D)",
        choices=("x0", "epsilon", "v"),
    )
    learned_variance: bool = option(
        False, "whether the network also predicts a variance of each value (arXiv 2102.09672, section 3.1)"
    )
    x0_range: float = option(
        1.0, "largest magnitude of clean data, to which samplers clip predictions", above=0, identity=False
    )

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        is_valid = bool(self.betas.max() < 1)
        self.require(is_valid, path, "timesteps", f"larger for the {self.schedule} schedule, whose last beta would be 1")

    @functools.cached_property
    def betas(self) -> Float64[np.ndarray, "T"]:
        """Variance of the noise added by each timestep."""
        return SCHEDULES[self.schedule](self.timesteps)

    @functools.cached_property
    def alpha_bar(self) -> Float64[np.ndarray, "T"]:
        """Variance of the signal that is left after each timestep."""
        return np.cumprod(1 - self.betas)

    def levels(self, t: Int[Array, "b"], ndim: int) -> tuple[Float32[Array, "b ..."], Float32[Array, "b ..."]]:
        """Returns `(signal, sigma)` of timesteps, which broadcast to arrays of `ndim` axes."""
        return _take(np.sqrt(self.alpha_bar), t, ndim), _take(np.sqrt(1 - self.alpha_bar), t, ndim)


def output_channels(diffusion: Diffusion) -> int:
    """Returns the number of channels of the output of a U-Net."""
    return 6 if diffusion.learned_variance else 3


def _take(table: Float64[np.ndarray, "T"], t: Int[Array, "b"], ndim: int) -> Float32[Array, "b ..."]:
    return jnp.expand_dims(jnp.asarray(table, jnp.float32)[t], tuple(range(1, ndim)))


def add_noise(
    diffusion: Diffusion, x0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Int[Array, "b"]
) -> Float[Array, "b *shape"]:
    """Samples q(x_t | x_0) (arXiv 2006.11239, equation 4)."""
    signal, sigma = diffusion.levels(t, x0.ndim)
    return signal * x0 + sigma * noise


def to_x0(
    prediction: str, output: Float[Array, "b *shape"], x: Float[Array, "b *shape"], signal: ArrayLike, sigma: ArrayLike
) -> Float[Array, "b *shape"]:
    """Converts a network's output for `x` = x_t to the clean data that it implies. `signal` and `sigma` broadcast to x."""
    if prediction == "x0":
        return output
    return (x - sigma * output) / signal if prediction == "epsilon" else signal * x - sigma * output


def to_epsilon(
    x0: Float[Array, "b *shape"], x: Float[Array, "b *shape"], signal: ArrayLike, sigma: ArrayLike
) -> Float[Array, "b *shape"]:
    """Converts clean data to the noise that it implies for `x` = x_t."""
    return (x - signal * x0) / sigma


def target(
    diffusion: Diffusion, x0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Int[Array, "b"]
) -> Float[Array, "b *shape"]:
    """Returns what the network should predict."""
    if diffusion.prediction != "v":
        return x0 if diffusion.prediction == "x0" else noise
    signal, sigma = diffusion.levels(t, x0.ndim)
    return signal * noise - sigma * x0


def losses(
    diffusion: Diffusion,
    output: Float[Array, "b *outputs"],
    x0: Float[Array, "b *shape"],
    noise: Float[Array, "b *shape"],
    t: Int[Array, "b"],
    min_snr: float | None = None,
) -> dict[str, Float32[Array, "b"]]:
    """Computes the terms of the training loss for each example; the loss is the mean of their sum.

    `mse` is that of the prediction (L_simple, arXiv 2006.11239, equation 14). With a learned variance, `bound` is the
    variational bound of the variance, of weight T / 1000: L_hybrid of arXiv 2102.09672, equation 16, in bits.

    Args:
      output: output of the network for `add_noise(diffusion, x0, noise, t)`. With a learned variance, its last axis has
        twice the channels of x0: predictions, then variances.
      min_snr: clipping of the loss weight by the signal-to-noise ratio, 5 in arXiv 2303.09556, equation 6; None: equal
        weights.
    """
    output = output.astype(jnp.float32)
    prediction, variance = split_variance(output, x0.shape[-1])
    mse = _mean(jnp.square(prediction - target(diffusion, x0, noise, t)))
    if min_snr is not None:
        mse *= _take(min_snr_weights(diffusion, min_snr), t, 1)
    if not diffusion.learned_variance:
        return {"mse": mse}
    x = add_noise(diffusion, x0, noise, t)
    bound = variational_bound(diffusion, jax.lax.stop_gradient(prediction), variance, x0, x, t)
    return {"mse": mse, "bound": bound * diffusion.timesteps / 1000}


def split_variance(
    output: Float[Array, "b *outputs"], channels: int
) -> tuple[Float[Array, "b *shape"], Float[Array, "b *variances"]]:
    """Splits a network's output into predictions and variances, which has no channels if the variance is not learned."""
    return output[..., :channels], output[..., channels:]


def min_snr_weights(diffusion: Diffusion, gamma: float) -> Float64[np.ndarray, "T"]:
    """Computes the min-SNR weights of the squared error of the prediction (arXiv 2303.09556, section 3.4)."""
    snr = diffusion.alpha_bar / (1 - diffusion.alpha_bar)
    of_x0 = np.minimum(snr, gamma)
    return {"x0": of_x0, "epsilon": of_x0 / snr, "v": of_x0 / (snr + 1)}[diffusion.prediction]


def variational_bound(
    diffusion: Diffusion,
    prediction: Float[Array, "b *shape"],
    variance: Float[Array, "b *shape"],
    x0: Float[Array, "b *shape"],
    x: Float[Array, "b *shape"],
    t: Int[Array, "b"],
) -> Float32[Array, "b"]:
    """Computes the term of timestep t of the variational bound of pixels, in bits per value (arXiv 2006.11239, equation 5).

    It is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and for t = 0 the negative log-likelihood of x0, uint8 values in
    [-1, 1], by a discretised Gaussian.

    Args:
      prediction, variance: output of the network; see `interpolate_log_variance`.
      x: x_t.
    """
    alpha_bar, betas = diffusion.alpha_bar, diffusion.betas
    previous = np.append(1.0, alpha_bar[:-1])
    x0_weight = _take(np.sqrt(previous) * betas / (1 - alpha_bar), t, x.ndim)
    x_weight = _take(np.sqrt(1 - betas) * (1 - previous) / (1 - alpha_bar), t, x.ndim)
    posterior_variance = betas * (1 - previous) / (1 - alpha_bar)
    posterior_variance[0] = posterior_variance[1]  # 0: as arXiv 2102.09672 has it, whose logarithm is finite
    true_log_variance = _take(np.log(posterior_variance), t, x.ndim)
    log_variance = interpolate_log_variance(variance, true_log_variance, _take(np.log(betas), t, x.ndim))
    implied_x0 = to_x0(diffusion.prediction, prediction, x, *diffusion.levels(t, x.ndim))
    true_mean, mean = (x0_weight * value + x_weight * x for value in (x0, implied_x0))
    kl = log_variance - true_log_variance - 1 + jnp.exp(true_log_variance - log_variance)
    kl = 0.5 * (kl + jnp.square(true_mean - mean) * jnp.exp(-log_variance))
    nll = -_discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    return _mean(jnp.where(jnp.expand_dims(t == 0, tuple(range(1, x.ndim))), nll, kl)) / _NATS_PER_BIT


def interpolate_log_variance(
    variance: Float[Array, "b *shape"], log_posterior_variance: ArrayLike, log_beta: ArrayLike
) -> Float[Array, "b *shape"]:
    """Converts a learned variance, -1 to 1, to a log variance between its bounds (arXiv 2102.09672, equation 15)."""
    fraction = (variance + 1) / 2
    return fraction * log_beta + (1 - fraction) * log_posterior_variance


def _discretized_gaussian_log_likelihood(x, mean, log_std):
    """Computes the log-likelihood of uint8 values in [-1, 1] (arXiv 2006.11239, equation 13)."""
    centered, inverse_std = x - mean, jnp.exp(-log_std)
    above = _normal_cdf(inverse_std * (centered + _PIXEL_STEP / 2))
    below = _normal_cdf(inverse_std * (centered - _PIXEL_STEP / 2))
    probability = jnp.where(x < -0.999, above, jnp.where(x > 0.999, 1 - below, above - below))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _normal_cdf(x):
    """Computes the approximation of the normal distribution function that the reference of IDDPM uses, as does GELU's."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Float[Array, "b *shape"]) -> Float[Array, "b"]:
    """Averages over all axes except the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
