"""Loss terms of a VQGAN's generator and discriminator (arXiv 2012.09841, section 3.1), combined by `vqgan_jax.gan`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ADVERSARIAL = ("hinge", "vanilla", "non_saturating")
PIXELS: dict[str, Callable] = {"l1": jnp.abs, "l2": jnp.square}  # elementwise functions of differences
MAX_WEIGHT = 1e4  # upper bound of the adaptive weight, as in taming
_LECAM_DECAY = 0.99


def pixel_loss(
    kind: str, reconstruction: Float[Array, "b h w 3"], original: Float[Array, "b h w 3"]
) -> Float[Array, ""]:
    """Computes the mean absolute ("l1") or squared ("l2") difference of pixels in [-1, 1]; `kind` is a key of `PIXELS`."""
    return jnp.mean(PIXELS[kind](reconstruction - original))


def generator_loss(kind: str, fake: Float[Array, "..."]) -> Float[Array, ""]:
    """Computes the generator's adversarial loss from the discriminator's logits of generated images.

    "hinge" (arXiv 1705.02894) and "vanilla", as in taming: mean of -logit; "non_saturating" (arXiv 1406.2661): mean of
    -log sigmoid(logit).
    """
    return jnp.mean(jax.nn.softplus(-fake)) if kind == "non_saturating" else -jnp.mean(fake)


def discriminator_loss(kind: str, real: Float[Array, "..."], fake: Float[Array, "..."]) -> Float[Array, ""]:
    """Computes the discriminator's loss: hinge, or cross-entropy for the other kinds, halved as in taming."""
    if kind == "hinge":
        return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


def lecam(state: dict[str, Array], real: Float[Array, "..."], fake: Float[Array, "..."]) -> Float[Array, ""]:
    """Computes the LeCam regulariser from moving means of real and fake logits (arXiv 2104.03310, equation 3)."""
    return jnp.mean(jax.nn.relu(real - state["fake"]) ** 2) + jnp.mean(jax.nn.relu(state["real"] - fake) ** 2)


def update_lecam_means(state: dict[str, Array], real: Float[Array, "..."], fake: Float[Array, "..."]) -> dict[str, Array]:
    """Updates LeCam's moving means of the logits."""
    means = jax.lax.stop_gradient({"real": jnp.mean(real), "fake": jnp.mean(fake)})
    return {name: state[name] + (1 - _LECAM_DECAY) * (means[name] - state[name]) for name in means}


def gradient_penalty(discriminator: Callable, images: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    """Computes the R1 gradient penalty (arXiv 1801.04406, equation 9) for a patch discriminator.

    The penalty is half the squared gradient norm of the mean logit per image, times the number of patches N. For patches
    without overlap the squared gradient norm of the mean logit is 1/N of that of one patch, so the factor N makes the
    penalty independent of the image size.
    """

    def logit_sum(x):
        logits = discriminator(x)
        return jnp.sum(logits), logits

    grad, logits = jax.grad(logit_sum, has_aux=True)(images)
    return 0.5 * jnp.sum(grad**2) / logits.size


def adaptive_weight(
    last_layer: Callable,
    kernel: Float[Array, "..."],
    reconstruction: Float[Array, "b h w 3"],
    adversarial: Float[Array, "b h w 3"],
) -> Float[Array, ""]:
    """Computes the adaptive weight of the adversarial loss (arXiv 2012.09841, equation 7), at most MAX_WEIGHT.

    The weight is the ratio of the gradient norms of both losses with respect to the last layer's kernel, in float32.

    Args:
      last_layer: function kernel -> images, for fixed features.
      reconstruction, adversarial: gradients of the two losses with respect to the images.
    """
    _, vjp = jax.vjp(last_layer, kernel)
    norms = [jnp.sqrt(jnp.sum(vjp(g)[0].astype(jnp.float32) ** 2)) for g in (reconstruction, adversarial)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, MAX_WEIGHT)


def ramp(step, start: int, updates: int):
    """Returns the warm-up factor of the adversarial loss: 0 before update `start`, then linear to 1 over `updates`."""
    return jnp.clip((step - start + 1) / updates, 0.0, 1.0)
