"""Losses of a painting: spherical distance to the prompt parts with weights and stops, and losses of the image."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_EPS = 1e-12


@jax.custom_vjp
def clamp_with_grad(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Clamps to [0, 1]. Outside, gradients pass only where a descent step leads back into the range (VQGAN+CLIP)."""
    return jnp.clip(x, 0, 1)


def _clamp_forward(x):
    return jnp.clip(x, 0, 1), x


def _clamp_backward(x, g):
    return (jnp.where(g * (x - jnp.clip(x, 0, 1)) >= 0, g, 0),)


clamp_with_grad.defvjp(_clamp_forward, _clamp_backward)


def _safe_norm(x, axis=-1):
    """Computes the Euclidean norm, with gradient 0 at 0."""
    square = jnp.sum(x**2, axis=axis)
    is_zero = square == 0  # NaN stays NaN
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def spherical_distance(u: Float[Array, "*n d"], v: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Computes half the squared angle between vectors of equal length, 2 asin(|u - v| / 2)^2 for unit vectors.

    The implementation uses atan2, because the gradient of asin is not finite at the angles 0 and pi.
    """
    return 2 * jnp.arctan2(_safe_norm(u - v), _safe_norm(u + v)) ** 2


def prompt_loss(
    distance: Float[Array, "..."], weight: Float[Array, "..."], stop: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes weight * distance, with gradient 0 where sign(weight) * distance is not above `stop`."""
    signed = jnp.sign(weight) * distance
    return jnp.abs(weight) * jnp.where(signed > stop, signed, jax.lax.stop_gradient(signed))


# ---------------------------------------------------------------------------------------------------------------------
# Losses of an image [H, W, 3] in [0, 1]


def total_variation(x: Float[Array, "H W 3"]) -> Float[Array, ""]:
    """Computes the mean squared difference of vertically and of horizontally adjacent pixels."""
    return jnp.mean((x[1:] - x[:-1]) ** 2) + jnp.mean((x[:, 1:] - x[:, :-1]) ** 2)


def colourfulness(x: Float[Array, "H W 3"]) -> Float[Array, ""]:
    """Computes the colourfulness of Hasler and Süsstrunk (Measuring colourfulness in natural images, 2003)."""
    red_green = x[..., 0] - x[..., 1]
    yellow_blue = (x[..., 0] + x[..., 1]) / 2 - x[..., 2]

    def root_sum(a, b):
        return jnp.sqrt(a + b + _EPS)

    spread = root_sum(jnp.var(red_green), jnp.var(yellow_blue))
    return spread + 0.3 * root_sum(jnp.mean(red_green) ** 2, jnp.mean(yellow_blue) ** 2)


def asymmetry(x: Float[Array, "H W 3"]) -> Float[Array, ""]:
    """Computes the mean squared difference to the horizontally flipped image."""
    return jnp.mean((x - x[:, ::-1]) ** 2)


def border_loss(x: Float[Array, "H W 3"], colour: Float[Array, "3"], width) -> Float[Array, ""]:
    """Computes the mean squared difference to a colour in a border. `width` is a fraction of the shorter side."""
    h, w = x.shape[:2]
    rows, columns = np.arange(h), np.arange(w)
    distance = np.minimum(np.minimum(rows, h - 1 - rows)[:, None], np.minimum(columns, w - 1 - columns)[None])
    border_mask = (distance < width * min(h, w)).astype(jnp.float32)
    return jnp.sum(border_mask[..., None] * (x - colour[None, None]) ** 2) / jnp.maximum(3 * jnp.sum(border_mask), 1)


def vignette_loss(x: Float[Array, "H W 3"], colour: Float[Array, "3"], width) -> Float[Array, ""]:
    """Computes the mean absolute difference to a colour, weighted by 1 - exp(-r^2 / 2 width^2).

    r is the distance from the centre in fractions of the sides.
    """
    y, x_ = (((np.arange(side) + 0.5) / side - 0.5).astype(np.float32) for side in x.shape[:2])
    weights = 1 - jnp.exp(-(y[:, None] ** 2 + x_[None] ** 2) / (2 * width**2))
    return jnp.mean(weights[..., None] * jnp.abs(x - colour[None, None]))


def palette_loss(x: Float[Array, "H W 3"], palette: Float[Array, "k 3"]) -> Float[Array, ""]:
    """Computes the mean squared distance of the pixels to their nearest palette colours."""
    distance = jnp.sum((x[:, :, None] - palette[None, None]) ** 2, axis=-1)
    return jnp.mean(jnp.min(distance, axis=-1))
