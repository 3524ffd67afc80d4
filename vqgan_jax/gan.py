"""The GAN loss of a VQGAN: generator (autoencoder with quantiser) and discriminator (arXiv 2012.09841, section 3.1).

taming-transformers runs two forward and three backward passes of the generator per step to balance the reconstruction and
adversarial losses. Both losses depend on the generator only through the reconstruction. Therefore this module computes their
gradients with respect to the reconstruction, balances the gradients by two backward passes through the last layer, and
backpropagates the sum once.
"""

import dataclasses
import functools
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
    """A batch of reconstructed images.

    Attributes:
      pixels: nominally in [-1, 1].
      features: input of the decoder's last convolution.
      quantized: output of the quantiser; see `vqgan_jax.quantize`.
    """

    pixels: Float[Array, "b h w 3"]
    features: Float[Array, "b h w c"]
    quantized: Quantized


@dataclasses.dataclass(frozen=True)
class TwoPlayerLoss:
    """The training loss of generator and discriminator, with the signature of `train_jax.task.Task.loss`.

    `(params, extra, images, rng, step) -> (loss, (metrics, statistics))`, with images in [-1, 1].

    Attributes:
      generator: autoencoder, `vqgan_jax.model.VQGAN`.
      discriminator: see `vqgan_jax.discriminator`; None to train without a discriminator.
      distance: perceptual distance, or None.
      config: config of the run, of which `loss`, `perceptual`, `compute`, `model.quantizer` and `steps` are used.
      keeps_latents: whether to return latents before quantisation in the statistics, as codebook updates require.
    """

    generator: nn.Module
    discriminator: nn.Module | None
    distance: Distance | None
    config: ConfigDict
    keeps_latents: bool

    def __call__(self, params, extra, images: Float[Array, "b h w 3"], rng, step):
        """Computes the scalar loss of both players, and `(metrics, updated variables)`."""
        options = self.config.loss
        reconstruction = self.reconstruct(params["generator"], extra, images, rng, step)
        pixels, quantized = reconstruction.pixels, reconstruction.quantized
        detached = jax.lax.stop_gradient(reconstruction)
        losses, grads = self.reconstruction_losses(extra, detached.pixels, images)
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
                jax.lax.stop_gradient(params), extra, detached, grad_wrt_reconstruction, step
            )
            discriminator_loss, discriminator_metrics, state = self.discriminator_loss(
                params["discriminator"], extra, images, detached.pixels, step
            )
            statistics |= state
            metrics |= discriminator_metrics | {"loss_adversarial": adversarial, "adaptive_weight": weight}
        # Surrogate: its value is the sum of the losses, its gradient with respect to `pixels` is `total_grad`.
        total_grad = sum(grads.values())
        generator_loss = jnp.sum(total_grad * (pixels - detached.pixels)) + codebook_loss
        generator_loss += jax.lax.stop_gradient(total - codebook_loss)
        metrics |= _compute_gradient_shares(grads) | quantized.metrics | {"psnr": _mean_psnr(detached.pixels, images)}
        return generator_loss + discriminator_loss, (metrics, statistics)

    def reconstruct(self, params, extra, images: Float[Array, "b h w 3"], rng, step) -> Reconstruction:
        """Reconstructs images in training mode."""
        temperature = quantize.temperature(self.config.model.quantizer.temperature, step, self.config.steps)
        features, quantized = self.generator.apply(
            {"params": params, **extra["generator"]}, images, False, temperature, method="features", rngs={"dropout": rng}
        )
        return Reconstruction(self._apply_last_layer(params, features), features, quantized)

    def reconstruction_losses(self, extra, pixels: Float[Array, "b h w 3"], images: Float[Array, "b h w 3"]):
        """Computes the weighted reconstruction losses and their gradients with respect to `pixels`, by name."""
        options = self.config

        def pixel_loss(r):
            return options.loss.pixel_weight * loss.pixel_loss(options.loss.pixels, r, images)

        def perceptual_loss(r):
            return options.perceptual.weight * self.distance.function(
                extra["perceptual"], r, images, options.compute.dtype
            )

        functions = {"pixels": pixel_loss} | ({} if self.distance is None else {"perceptual": perceptual_loss})
        pairs = {name: jax.value_and_grad(function)(pixels) for name, function in functions.items()}
        losses, grads = ({name: pair[i] for name, pair in pairs.items()} for i in range(2))
        return losses, grads

    def generator_adversarial_loss(
        self, params, extra, reconstruction: Reconstruction, grad_wrt_reconstruction: Float[Array, "b h w 3"], step
    ):
        """Computes the adversarial loss, its weighted gradient w.r.t. the reconstruction, and the adaptive weight."""
        options = self.config.loss

        def adversarial_loss(r):
            logits, _ = self._discriminate(params["discriminator"], extra["discriminator"], r)
            return loss.generator_loss(options.adversarial, logits)

        def active():
            value, grad = jax.value_and_grad(adversarial_loss)(reconstruction.pixels)
            weight = jnp.ones(())
            if options.adaptive:
                kernel = params["generator"]["decoder"]["conv_out"]["kernel"]

                def last_layer(kernel):
                    return self._apply_last_layer(_replace_last_kernel(params["generator"], kernel), reconstruction.features)

                weight = loss.adaptive_weight(last_layer, kernel, grad_wrt_reconstruction, grad)
            ramp = loss.ramp(step, options.disc_start + options.disc_warmup, options.disc_ramp)
            return value, options.weight * ramp * weight * grad, weight

        def inactive():
            return jnp.zeros(()), jnp.zeros_like(reconstruction.pixels), jnp.zeros(())

        return jax.lax.cond(step >= options.disc_start + options.disc_warmup, active, inactive)

    def discriminator_loss(self, params, extra, images: Float[Array, "b h w 3"], pixels: Float[Array, "b h w 3"], step):
        """Computes the discriminator's loss with penalties, metrics, and updated collections and LeCam means."""
        options = self.config.loss
        names = ("loss_discriminator", "logits_real", "logits_fake")

        def active():
            real, collections = self._discriminate(params, extra["discriminator"], images)
            fake, collections = self._discriminate(params, collections, pixels)
            value = total = loss.discriminator_loss(options.adversarial, real, fake)
            state = {"discriminator": collections}
            if options.lecam:
                total += options.lecam * loss.lecam(extra["lecam"], real, fake)
                state["lecam"] = loss.update_lecam_means(extra["lecam"], real, fake)
            if options.r1:

                def penalize():
                    logits = functools.partial(self._discriminate, params, extra["discriminator"])
                    return options.r1 * options.r1_interval * loss.gradient_penalty(lambda x: logits(x)[0], images)

                # Lazy regularisation (arXiv 1912.04958, section 3.1). An interval of 1 needs no branch.
                is_due = (step - options.disc_start) % options.r1_interval == 0
                always = options.r1_interval == 1
                total += penalize() if always else jax.lax.cond(is_due, penalize, lambda: jnp.zeros(()))
            return total, dict(zip(names, (value, real.mean(), fake.mean()), strict=True)), state

        def inactive():
            state = {name: extra[name] for name in ("discriminator", "lecam") if name in extra}
            return jnp.zeros(()), dict.fromkeys(names, jnp.zeros(())), state

        return jax.lax.cond(step >= options.disc_start, active, inactive)

    def _apply_last_layer(self, params, features):
        return self.generator.apply({"params": params}, features, method="pixels")

    def _discriminate(self, params, collections: dict[str, Any], images):
        """Returns the discriminator's logits of images, and its updated collections."""
        variables = {"params": params, **collections}
        return self.discriminator.apply(variables, images, True, mutable=list(collections))


def _replace_last_kernel(params, kernel):
    decoder = params["decoder"]
    return params | {"decoder": decoder | {"conv_out": decoder["conv_out"] | {"kernel": kernel}}}


def _compute_gradient_shares(grads: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Computes each loss's share of the summed gradient norms with respect to the reconstruction."""
    norms = {name: jnp.linalg.norm(grad.ravel()) for name, grad in grads.items()}
    total = jnp.maximum(sum(norms.values()), 1e-12)
    return {f"gradient_share/{name}": norm / total for name, norm in norms.items()}


def _mean_psnr(pixels: Float[Array, "b h w 3"], images: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    return jnp.mean(psnr((jnp.clip(pixels, -1, 1) + 1) / 2, (images + 1) / 2))
