"""Sampling from diffusion models: one compiled scan over a table of steps.

    steps = make_steps(diffusion, 25)
    x = draw_noise(keys, diffusion.timesteps, (64, 64, 3))
    x0 = sample(guide(predict, 8.0), x, keys, steps, make_ancestral_update(diffusion))
    x = invert(predict, x0, steps, diffusion)

The network is a function `predict(x [b, …], t [b]) -> output`; with guidance its rows are pairs (see `guide`). The noise of
an example depends only on its own key and on the timestep, so an example does not depend on the rest of its batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32

from dalle_jax.unclip.diffusion import Diffusion, interpolate_log_variance, split_variance, to_epsilon, to_x0

Predict = Callable[[Float[Array, "b *shape"], Int32[Array, "b"]], Float[Array, "b *outputs"]]
# (output, x, noise, step) -> x of the next step
Update = Callable[[jax.Array, jax.Array, jax.Array, "Steps"], jax.Array]
_SMALLEST_VARIANCE = 1e-20


class Steps(NamedTuple):
    """Table of sampling steps, a row for each; from timestep t, of alpha_bar A, to the next one, of alpha_bar P.

    After the last timestep P is 1. The beta of a step is that of its jump, 1 - A / P.

    Attributes:
      signal, sigma, next_signal, next_sigma: sqrt(A), sqrt(1 - A), sqrt(P), sqrt(1 - P).
      x0_weight, x_weight: weights of the posterior mean (arXiv 2006.11239, equation 7).
      log_beta, log_posterior_variance: bounds of the log variance (arXiv 2102.09672, section 3.1).
    """

    t: Int32[ArrayLike, "n"]
    signal: Float32[ArrayLike, "n"]
    sigma: Float32[ArrayLike, "n"]
    next_signal: Float32[ArrayLike, "n"]
    next_sigma: Float32[ArrayLike, "n"]
    x0_weight: Float32[ArrayLike, "n"]
    x_weight: Float32[ArrayLike, "n"]
    log_beta: Float32[ArrayLike, "n"]
    log_posterior_variance: Float32[ArrayLike, "n"]


def make_steps(diffusion: Diffusion, count: int) -> Steps:
    """Makes the table of `count` steps at equal distances, from timestep T - 1 to 0, both included.

    A part of the table is a part of the sampling: `jax.tree.map(lambda x: x[:-1], steps)` leaves out the last step.

    Raises ValueError for fewer than 2 steps or more than timesteps.
    """
    if not 2 <= count <= diffusion.timesteps:
        raise ValueError(f"{count} sampling steps; there must be 2 to {diffusion.timesteps}, the timesteps in training")
    t = np.round(np.linspace(0, diffusion.timesteps - 1, count))[::-1].astype(np.int32)
    alpha_bar = diffusion.alpha_bar[t]
    following = np.append(alpha_bar[1:], 1.0)
    beta = 1 - alpha_bar / following
    posterior_variance = (1 - following) / (1 - alpha_bar) * beta
    columns = (
        np.sqrt(alpha_bar),
        np.sqrt(1 - alpha_bar),
        np.sqrt(following),
        np.sqrt(1 - following),
        np.sqrt(following) * beta / (1 - alpha_bar),
        np.sqrt(1 - beta) * (1 - following) / (1 - alpha_bar),
        np.log(beta),
        np.log(np.maximum(posterior_variance, _SMALLEST_VARIANCE)),
    )
    return Steps(t, *(column.astype(np.float32) for column in columns))


def draw_noise(keys: jax.Array, t: int | Int32[Array, ""], shape: tuple[int, ...]) -> Float32[Array, "b ..."]:
    """Draws the standard normal noise of timestep `t` for each of the random keys [b]; t = T is the start of sampling."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)


def sample(
    predict: Predict, x: Float32[Array, "b *shape"], keys: jax.Array, steps: Steps, update: Update
) -> Float32[Array, "b *shape"]:
    """Applies `steps` to `x`. The result of all steps, from noise, is a sample of clean data.

    Args:
      keys: one random key per example [b].
      update: rule of a step: `make_ancestral_update` or `make_ddim_update`.
    """

    def body(x, step):
        output = predict(x, jnp.full(len(x), step.t)).astype(jnp.float32)
        return update(output, x, draw_noise(keys, step.t, x.shape[1:]), step), None

    return jax.lax.scan(body, x, jax.tree.map(jnp.asarray, steps))[0]


def sample_part(
    predict: Predict,
    x: Float32[Array, "b *shape"],
    keys: jax.Array,
    steps: Steps,
    update: Update,
    start: int | Int32[Array, ""],
    stop: int | Int32[Array, ""],
) -> tuple[Float32[Array, "b *shape"], Float32[Array, "b *shape"]]:
    """Applies the rows [start, stop) of `steps` to `x` as `sample` does; also returns the clean data predicted last.

    The bounds are traced, so that one program computes all parts of a sampling.
    """
    steps = jax.tree.map(jnp.asarray, steps)

    def body(index, carry):
        x, _ = carry
        step = jax.tree.map(lambda column: column[index], steps)
        output = predict(x, jnp.full(len(x), step.t)).astype(jnp.float32)
        to_the_end = step._replace(next_signal=1.0, next_sigma=0.0, x0_weight=1.0, x_weight=0.0)
        x0 = update(output, x, jnp.zeros_like(x), to_the_end)
        return update(output, x, draw_noise(keys, step.t, x.shape[1:]), step), x0

    return jax.lax.fori_loop(start, stop, body, (x, x))


def make_ancestral_update(diffusion: Diffusion, constrain: Callable | None = None) -> Update:
    """Makes the update that samples p(x_{t-1} | x_t) (arXiv 2006.11239, algorithm 2).

    The variance is the learned one, or else the lower bound (`fixed_small_log` elsewhere).

    Args:
      constrain: function of the predicted x0; None: clipping to `diffusion.x0_range`. See `dynamic_threshold`.
    """

    def update(output, x, noise, step):
        prediction, variance = split_variance(output, x.shape[-1])
        x0 = _predict_x0(diffusion, constrain, prediction, x, step)
        log_variance = step.log_posterior_variance
        if diffusion.learned_variance:
            log_variance = interpolate_log_variance(variance, log_variance, step.log_beta)
        std = jnp.where(step.next_sigma > 0, jnp.exp(0.5 * log_variance), 0.0)  # none after the last timestep
        return step.x0_weight * x0 + step.x_weight * x + std * noise

    return update


def make_ddim_update(diffusion: Diffusion, eta: ArrayLike = 0.0, constrain: Callable | None = None) -> Update:
    """Makes the update of DDIM (arXiv 2010.02502, equation 12).

    Args:
      eta: scale of the noise, 0 to 1: 0 is deterministic, 1 has the variance of ancestral sampling (equation 16).
      constrain: as in `make_ancestral_update`; the noise estimate is that of the constrained x0.
    """

    def update(output, x, noise, step):
        prediction, _ = split_variance(output, x.shape[-1])
        x0 = _predict_x0(diffusion, constrain, prediction, x, step)
        epsilon = to_epsilon(x0, x, step.signal, step.sigma)
        variance = jnp.where(step.next_sigma > 0, jnp.exp(step.log_posterior_variance), 0.0)
        # sqrt(1 - P - eta^2 variance), without the difference of numbers that are almost equal
        direction = jnp.sqrt(jnp.square(step.x_weight * step.sigma) + (1 - jnp.square(eta)) * variance)
        return step.next_signal * x0 + direction * epsilon + eta * jnp.sqrt(variance) * noise

    return update


def invert(
    predict: Predict, x0: Float32[Array, "b *shape"], steps: Steps, diffusion: Diffusion
) -> Float32[Array, "b *shape"]:
    """Encodes data as the noise from which deterministic DDIM with these steps samples it (arXiv 2105.05233, appendix F).

    Every step solves the equation of a DDIM step for its input, with the network's noise estimate for its output instead:
    the error is proportional to the distance of the steps.
    """

    def body(x, step):
        prediction, _ = split_variance(predict(x, jnp.full(len(x), step.t)).astype(jnp.float32), x.shape[-1])
        implied_x0 = to_x0(diffusion.prediction, prediction, x, step.signal, step.sigma)
        epsilon = to_epsilon(implied_x0, x, step.signal, step.sigma)
        scale = step.signal / step.next_signal
        return scale * x + (step.sigma - scale * step.next_sigma) * epsilon, None

    return jax.lax.scan(body, x0, jax.tree.map(jnp.asarray, steps), reverse=True)[0]


def _predict_x0(diffusion: Diffusion, constrain: Callable | None, prediction, x, step: Steps):
    """Converts the prediction to clean data and constrains it."""
    x0 = to_x0(diffusion.prediction, prediction, x, step.signal, step.sigma)
    return jnp.clip(x0, -diffusion.x0_range, diffusion.x0_range) if constrain is None else constrain(x0)


def dynamic_threshold(percentile: ArrayLike) -> Callable[[Float[Array, "b *shape"]], Float[Array, "b *shape"]]:
    """Makes the dynamic thresholding of pixels in [-1, 1] (arXiv 2205.11487, section 2.3).

    Each image is clipped to, and divided by, this percentile (0 to 1; 0.995 in Imagen) of its absolute values, if above 1.
    """

    def constrain(x0):
        limit = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), percentile, axis=1)
        limit = jnp.expand_dims(jnp.maximum(limit, 1.0), tuple(range(1, x0.ndim)))
        return jnp.clip(x0, -limit, limit) / limit

    return constrain


def guide(predict: Predict, scale: ArrayLike) -> Predict:
    """Adds classifier-free guidance to a network whose rows are pairs (arXiv 2207.12598, equation 6).

    Predictions are u + scale (c - u) of each pair's conditional row c and unconditional row u; learned variances are those
    of the conditional row.

    Args:
      predict: function of 2 b rows, whose conditions are those of `interleave`.
    """

    def guided(x, t):
        output = predict(jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2)).astype(jnp.float32)
        pairs = output.reshape(len(x), 2, *output.shape[1:])
        (c, variance), (u, _) = (split_variance(pairs[:, row], x.shape[-1]) for row in (0, 1))
        return jnp.concatenate([u + scale * (c - u), variance], axis=-1)

    return guided


def interleave(conditional: Any, unconditional: Any) -> Any:
    """Makes pairs of rows for `guide`: each row of the trees of arrays `conditional`, then that of `unconditional`."""

    def pair(c, u):
        return jnp.stack([c, u], axis=1).reshape(-1, *c.shape[1:])

    return jax.tree.map(pair, conditional, unconditional)
