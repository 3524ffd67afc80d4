"""The loss of a VQGAN's two players: generator with quantiser, and discriminator (arXiv 2012.09841, section 3.1).

taming-transformers runs the generator's forward twice, and its backward three times a step, to balance reconstruction
against the discriminator. Both losses are functions of the reconstruction alone, so here their gradients are taken there,
balanced at the last layer by two small backward passes through it, and propagated back once.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vqgan_jax import loss, quantize
from vqgan_jax.metrics import psnr
from vqgan_jax.perceptual import Distance
from vqgan_jax.quantize import Quantized


class Reconstruction(NamedTuple):
    """A batch through the autoencoder.

    Attributes:
      pixels: in [-1, 1], nominally.
      features: what the decoder's last convolution makes them of.
      quantized: see `vqgan_jax.quantize`.
    """

    pixels: Float[Array, "b h w 3"]
    features: Float[Array, "b h w c"]
    quantized: Quantized


@dataclasses.dataclass(frozen=True)
class TwoPlayerLoss:
    """`(params, extra, x, rng, step) -> (loss, (metrics, statistics))`, as `train_jax.task.Task.loss` has it.

    Attributes:
      generator: the autoencoder, `vqgan_jax.model.VQGAN`.
      discriminator: see `vqgan_jax.discriminator`; None: there is none.
      distance: the perceptual distance, or None.
      config: the run's `loss`, `perceptual`, `model.quantizer` and `steps`.
      keeps_latents: whether statistics hold the latents that were quantised, which codebook rules need.
    """

    generator: nn.Module
    discriminator: nn.Module | None
    distance: Distance | None
    config: ConfigDict
    keeps_latents: bool

    def __call__(self, params, extra, x: Float[Array, "b h w 3"], rng, step):
        options = self.config.loss
        reconstruction = self.reconstruct(params["generator"], extra, x, rng, step)
        pixels, quantized = reconstruction.pixels, reconstruction.quantized
        fixed = jax.lax.stop_gradient(reconstruction)
        losses, grads = self.reconstruction_losses(extra, fixed.pixels, x)
        grad_wrt_reconstruction = sum(grads.values())
        codebook_loss = options.codebook_weight * quantized.loss
        total = sum(losses.values()) + codebook_loss
        metrics = {f"loss_{name}": value for name, value in losses.items()} | {"loss_codebook": quantized.loss}
        statistics = {"codes": quantized.codes}
        if self.keeps_latents:
            statistics["latents"] = jax.lax.stop_gradient(quantized.latents)
        discriminator_loss = 0.0
        if self.discriminator is not None:
            adversarial, grads["adversarial"], weight = self.generator_adversarial_loss(
                jax.lax.stop_gradient(params), extra, fixed, grad_wrt_reconstruction, step
            )
            discriminator_loss, discriminator_metrics, state = self.discriminator_loss(
                params["discriminator"], extra, x, fixed.pixels, step
            )
            statistics |= state
            metrics |= discriminator_metrics | {"loss_adversarial": adversarial, "adaptive_weight": weight}
        # The generator's one gradient: the value is the losses', the gradient at the pixels the balanced sum.
        total_grad = sum(grads.values())
        generator_loss = jnp.sum(total_grad * (pixels - fixed.pixels)) + codebook_loss
        generator_loss += jax.lax.stop_gradient(total - codebook_loss)
        metrics |= _gradient_shares(grads) | quantized.metrics | {"psnr": _psnr(fixed.pixels, x)}
        return generator_loss + discriminator_loss, (metrics, statistics)

    def reconstruct(self, params, extra, x: Float[Array, "b h w 3"], rng, step) -> Reconstruction:
        """Pictures through encoder, quantiser and decoder, as training has them."""
        temperature = quantize.temperature(self.config.model.quantizer.temperature, step, self.config.steps)
        features, quantized = self.generator.apply(
            {"params": params, **extra["generator"]}, x, False, temperature, method="features", rngs={"dropout": rng}
        )
        return Reconstruction(self._last_layer(params, features), features, quantized)

    def reconstruction_losses(self, extra, pixels: Float[Array, "b h w 3"], x: Float[Array, "b h w 3"]):
        """The weighted losses between a reconstruction and the pictures, and their gradients with respect to it, by name."""
        options = self.config

        def pixel_loss(r):
            return options.loss.pixel_weight * loss.pixel_loss(options.loss.pixels, r, x)

        def perceptual_loss(r):
            return options.perceptual.weight * self.distance.function(extra["perceptual"], r, x)

        functions = {"pixels": pixel_loss} | ({} if self.distance is None else {"perceptual": perceptual_loss})
        pairs = {name: jax.value_and_grad(function)(pixels) for name, function in functions.items()}
        return {name: value for name, (value, _) in pairs.items()}, {name: grad for name, (_, grad) in pairs.items()}

    def generator_adversarial_loss(
        self, params, extra, reconstruction: Reconstruction, grad_wrt_reconstruction: Float[Array, "b h w 3"], step
    ):
        """The adversarial loss, its weighted gradient with respect to the reconstruction, and the adaptive weight."""
        options = self.config.loss

        def adversarial_loss(r):
            logits, _ = self._discriminate(params["discriminator"], extra["discriminator"], r)
            return loss.generator_loss(options.adversarial, logits)

        def weighted():
            value, grad = jax.value_and_grad(adversarial_loss)(reconstruction.pixels)
            weight = jnp.ones(())
            if options.adaptive:
                kernel = params["generator"]["decoder"]["conv_out"]["kernel"]

                def last_layer(kernel):
                    return self._last_layer(_with_last_kernel(params["generator"], kernel), reconstruction.features)

                weight = loss.adaptive_weight(last_layer, kernel, grad_wrt_reconstruction, grad)
            ramp = loss.ramp(step, options.disc_start + options.disc_warmup, options.disc_ramp)
            return value, options.weight * ramp * weight * grad, weight

        def before():
            return jnp.zeros(()), jnp.zeros_like(reconstruction.pixels), jnp.zeros(())

        return jax.lax.cond(step >= options.disc_start + options.disc_warmup, weighted, before)

    def discriminator_loss(self, params, extra, x: Float[Array, "b h w 3"], pixels: Float[Array, "b h w 3"], step):
        """The discriminator's loss with its penalties, its metrics, and its collections and LeCam means after it."""
        options = self.config.loss
        names = ("loss_discriminator", "logits_real", "logits_fake")

        def active():
            real, collections = self._discriminate(params, extra["discriminator"], x)
            fake, collections = self._discriminate(params, collections, pixels)
            value = total = loss.discriminator_loss(options.adversarial, real, fake)
            state = {"discriminator": collections}
            if options.lecam:
                total += options.lecam * loss.lecam(extra["lecam"], real, fake)
                state["lecam"] = loss.lecam_state(extra["lecam"], real, fake)
            if options.r1:
                total += options.r1 * loss.gradient_penalty(
                    lambda images: self._discriminate(params, extra["discriminator"], images)[0], x
                )
            return total, dict(zip(names, (value, real.mean(), fake.mean()), strict=True)), state

        def inactive():
            state = {name: extra[name] for name in ("discriminator", "lecam") if name in extra}
            return jnp.zeros(()), dict.fromkeys(names, jnp.zeros(())), state

        return jax.lax.cond(step >= options.disc_start, active, inactive)

    def _last_layer(self, params, features):
        return self.generator.apply({"params": params}, features, method="pixels")

    def _discriminate(self, params, collections: dict[str, Any], images):
        """Logits of pictures, and the collections after them."""
        variables = {"params": params, **collections}
        return self.discriminator.apply(variables, images, True, mutable=list(collections))


def _with_last_kernel(params, kernel):
    decoder = params["decoder"]
    return params | {"decoder": decoder | {"conv_out": decoder["conv_out"] | {"kernel": kernel}}}


def _gradient_shares(grads: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Norm of each loss's gradient at the reconstruction, over the sum of all norms."""
    norms = {name: jnp.linalg.norm(grad.ravel()) for name, grad in grads.items()}
    total = jnp.maximum(sum(norms.values()), 1e-12)
    return {f"gradient_share/{name}": norm / total for name, norm in norms.items()}


def _psnr(pixels: Float[Array, "b h w 3"], x: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    return jnp.mean(psnr((jnp.clip(pixels, -1, 1) + 1) / 2, (x + 1) / 2))
