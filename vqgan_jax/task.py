"""VQGAN as a task: two players, one scalar; generator and quantiser against a patch discriminator.

Batches: `image` uint8 [B, size, size, 3]. `extra`: `generator` and `discriminator` (collections that change without a
gradient: an EMA codebook, batch statistics), `averaged` (an EMA codebook's points, as evaluation uses them), `usage`
(`vqgan_jax.codebook`), `lecam`, `perceptual` (frozen weights).
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from train_jax import sharding
from train_jax.config import adopt
from train_jax.data import images
from train_jax.errors import ConfigError
from train_jax.task import Task, averaged
from vqgan_jax import averaging, codebook, discriminator, evaluators, loss, model, perceptual, pretrained, quantize

HALF = (0.5, 0.5, 0.5)  # mean and deviation that bring pixels to [-1, 1]
# What a run that starts from a checkpoint may choose otherwise: shapes and the meaning of codes do not depend on it.
_FREE = ("resolution", "dropout", "dtype", "quantizer.beta", "quantizer.legacy", "quantizer.kl_weight", "quantizer.decay",
         "quantizer.temperature", "quantizer.entropy", "quantizer.entropy_temperature")  # fmt: skip
_FINETUNE = "vqgan/finetune"  # the shipped config that starts from a checkpoint
_COLLAPSED = 0.05  # share of codes in use
_WON = 0.02  # loss of a discriminator that is hardly ever wrong


def defaults() -> ConfigDict:
    """VQGAN's part of a config."""
    c = ConfigDict()
    c.pretrained = ""  # a VQGAN to start from, anything that vqgan_jax.load opens; it brings its model
    c.model = model.defaults()
    c.codebook = ConfigDict()
    c.codebook.start = "random"  # or "kmeans": centres of the first batch's latents; with pretrained, the checkpoint's codes
    c.codebook.revive = 0  # a code that no latent took for so many updates moves onto a latent; 0: never
    c.discriminator = discriminator.defaults()
    c.fresh_discriminator = False  # with pretrained: start anew, though taming's checkpoint holds one
    c.perceptual = perceptual.defaults()
    c.loss = ConfigDict()
    c.loss.pixels = "l1"  # or "l2"
    c.loss.pixel_weight = 1.0
    c.loss.codebook_weight = 1.0
    c.loss.adversarial = "hinge"  # or "vanilla", "non_saturating", or "none": no discriminator at all
    c.loss.weight = 0.8  # of the adversarial loss, times the adaptive weight
    c.loss.adaptive = True
    c.loss.start = 0  # update at which the discriminator begins to learn
    c.loss.alone = 0  # updates from then on during which it learns and the generator does not hear of it
    c.loss.rise = 1  # updates in which its weight then rises to the whole
    c.loss.lecam = 0.0  # weight; 0: without
    c.loss.r1 = 0.0  # weight; 0: without
    c.preprocess = ConfigDict({"mode": "crop", "interpolation": "bicubic"})
    c.augment = ConfigDict({"scale": (1.0, 1.0), "flip": False})  # as of CLIP
    c.evaluators = evaluators.defaults()
    return c


def complete(config: ConfigDict, stated: ConfigDict) -> None:
    """With `config.pretrained`, the model is the checkpoint's. ConfigError where the user's own options contradict it."""
    if config.pretrained:
        checkpoint = pretrained.open_checkpoint(config.pretrained)
        own = stated.get("model", {})
        options = _resized(checkpoint.model, own.get("resolution"))
        adopt(config.model, own, options, "model", free=_FREE, example=_FINETUNE)
        if _takes_over(config, checkpoint):
            own = stated.get("discriminator", {})
            adopt(config.discriminator, own, checkpoint.discriminator[0], "discriminator", example=_FINETUNE)


def _resized(options: Mapping, resolution: int | None) -> Mapping:
    """A model's options for pictures of another size, attention in the same layers."""
    if resolution is None or "attention" not in options:
        return options
    attention = tuple(size * resolution // options["resolution"] for size in options["attention"])
    return {**options, "attention": attention}


def _takes_over(config: ConfigDict, found: pretrained.Checkpoint) -> bool:
    """Whether a new run goes on with the checkpoint's discriminator."""
    return found.discriminator is not None and config.loss.adversarial != "none" and not config.fresh_discriminator


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config. Raises ConfigError for options that contradict each other."""
    _check(config)
    m, options = config.model, config.loss
    size = m.resolution
    preprocess = images.Preprocess(size=size, mean=HALF, std=HALF, **config.preprocess)
    augment = images.Augment(preprocess, tuple(config.augment.scale), config.augment.flip)
    module = model.build(m)
    judge = discriminator.build(config.discriminator, model.DTYPES) if options.adversarial != "none" else None
    distance = perceptual.open_distance(config.perceptual)
    revive, is_ema = config.codebook.revive, m.quantizer.type == "ema"
    kmeans = config.codebook.start == "kmeans" and not config.pretrained
    follows = bool(revive or kmeans or is_ema)  # whether latents change the codebook by a rule
    decay = averaging.decay(config)

    def init(rng, batch):
        first, second = jax.random.split(rng)
        x = jnp.zeros((1, size, size, 3))
        variables = module.init({"params": first, "dropout": first}, x)
        params, extra = {"generator": variables.pop("params")}, {"generator": variables}
        if is_ema:
            extra["averaged"] = jnp.copy(variables["codebook"]["quantizer"]["points"])
        if judge is not None:
            variables = judge.init(second, x)
            params["discriminator"] = variables.pop("params")
            extra["discriminator"] = variables
            if options.lecam:
                extra["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        extra["usage"] = codebook.start(module.quantizer.size)
        if distance is not None:
            extra["perceptual"] = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), distance.weights)
        return params, extra

    def reconstruct(generator, extra, x, rng, step):
        """Reconstructions, features of the last layer, what the quantiser says."""
        temperature = quantize.temperature(m.quantizer, step, config.steps)
        h, quantized = module.apply(
            {"params": generator, **extra["generator"]},
            x,
            False,
            temperature,
            method="features",
            rngs={"dropout": rng},
        )
        return last(generator, h), h, quantized

    def last(generator, h):
        return module.apply({"params": generator}, h, method="pixels")

    def distances(found, x, extra):
        """Losses of a reconstruction, and the gradient of each with respect to it."""
        values, slopes = {}, {}
        values["pixels"], slopes["pixels"] = jax.value_and_grad(
            lambda r: options.pixel_weight * loss.pixel_loss(options.pixels, r, x)
        )(found)
        if distance is not None:
            values["perceptual"], slopes["perceptual"] = jax.value_and_grad(
                lambda r: config.perceptual.weight * distance.function(extra["perceptual"], r, x)
            )(found)
        return values, slopes

    def fooled(params, extra, found, h, slope, step):
        """The adversarial loss, its gradient at the reconstruction, weighted, and the adaptive weight."""

        def verdict(r):
            logits, _ = _judged(judge, params["discriminator"], extra["discriminator"], r)
            return loss.generator_loss(options.adversarial, logits)

        def weighed():
            value, pull = jax.value_and_grad(verdict)(found)
            weight = jnp.ones(())
            if options.adaptive:
                kernel = params["generator"]["decoder"]["conv_out"]["kernel"]
                weight = loss.adaptive_weight(
                    lambda k: last(_with_last_kernel(params["generator"], k), h), kernel, slope, pull
                )
            share = loss.ramp(step, options.start, options.alone, options.rise)
            return value, options.weight * share * weight * pull, weight

        begun = step >= options.start + options.alone
        return jax.lax.cond(begun, weighed, lambda: (jnp.zeros(()), jnp.zeros_like(found), jnp.zeros(())))

    def tell_apart(params, extra, x, found, step):
        """The discriminator's loss, its metrics, and what changed."""
        state = {name: extra[name] for name in ("discriminator", "lecam") if name in extra}

        def learnt():
            real, changed = _judged(judge, params, extra["discriminator"], x)
            fake, changed = _judged(judge, params, changed, found)
            value = loss.discriminator_loss(options.adversarial, real, fake)
            new = {"discriminator": changed}
            total = value
            if options.lecam:
                total += options.lecam * loss.lecam(extra["lecam"], real, fake)
                new["lecam"] = loss.lecam_state(extra["lecam"], real, fake)
            if options.r1:
                penalty = loss.gradient_penalty(lambda r: _judged(judge, params, extra["discriminator"], r)[0], x)
                total += options.r1 * penalty
            return total, {"loss_discriminator": value, "logits_real": real.mean(), "logits_fake": fake.mean()}, new

        def waiting():
            zero = jnp.zeros(())
            return zero, dict.fromkeys(("loss_discriminator", "logits_real", "logits_fake"), zero), state

        return jax.lax.cond(step >= options.start, learnt, waiting)

    def total_loss(params, extra, batch, rng, step):
        x = images.normalize(batch["image"], HALF, HALF)
        found, h, quantized = reconstruct(params["generator"], extra, x, rng, step)
        fixed, h = jax.lax.stop_gradient((found, h))
        frozen = jax.lax.stop_gradient(params)
        values, slopes = distances(fixed, x, extra)
        slope = sum(slopes.values())
        statistics = {"codes": quantized.codes}
        if follows:
            statistics["latents"] = jax.lax.stop_gradient(quantized.latents)
        metrics = {f"loss_{name}": value for name, value in values.items()} | {"loss_codebook": quantized.loss}
        true = sum(values.values()) + options.codebook_weight * quantized.loss
        pushed = slope
        others = 0.0
        if judge is not None:
            value, push, weight = fooled(frozen, extra, fixed, h, slope, step)
            slopes["adversarial"], pushed = push, slope + push
            others, found_metrics, new = tell_apart(params["discriminator"], extra, x, fixed, step)
            statistics |= new
            metrics |= found_metrics | {"loss_adversarial": value, "adaptive_weight": weight}
        # The one gradient of the generator: its value is the losses', its slope at the pictures the balanced sum.
        generator = jnp.sum(pushed * (found - fixed)) + options.codebook_weight * quantized.loss
        generator += jax.lax.stop_gradient(true - options.codebook_weight * quantized.loss)

        norms = {name: jnp.linalg.norm(s.ravel()) for name, s in slopes.items()}
        whole = jnp.maximum(sum(norms.values()), 1e-12)
        metrics |= {f"gradient_share/{name}": norm / whole for name, norm in norms.items()}
        metrics |= quantized.metrics
        mse = jnp.mean((jnp.clip(fixed, -1, 1) - x) ** 2, axis=(1, 2, 3)) / 4
        psnr = jnp.mean(-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
        return generator + others, (metrics | {"psnr": psnr}, statistics)

    def revise(params, extra, statistics, rng, step):
        """Codebook, its health and all running means, by all micro-batches of an update at once."""
        mesh = jax.sharding.get_abstract_mesh()
        codes = sharding.join_batch(statistics["codes"], mesh)
        first = jnp.all(extra["usage"]["last"] < 0)
        usage, health = codebook.follow(extra["usage"], codes, step)
        means = {name: x for name, x in statistics.items() if name not in ("codes", "latents")}
        extra = extra | averaged(means) | {"usage": usage}
        if not follows:
            return params, extra, {}, health
        latents = sharding.join_batch(statistics["latents"], mesh)
        generator = params["generator"]
        if is_ema:
            book = extra["generator"]["codebook"]["quantizer"]
            book = codebook.moving_means(book, codes, latents, m.quantizer.decay)
        else:
            book = {"points": generator["quantizer"]["codebook"]}
        fresh = codebook.replacements(latents, m.quantizer.size, first, rng, kmeans)
        extra["usage"], book, moved = codebook.revived(usage, book, fresh, step, first, revive, kmeans)
        if is_ema:
            extra["averaged"] = averaging.follow(extra["averaged"], book["points"], moved, step, decay)
            return params, extra | {"generator": {"codebook": {"quantizer": book}}}, {}, health
        generator = generator | {"quantizer": generator["quantizer"] | {"codebook": book["points"]}}
        return params | {"generator": generator}, extra, {"generator/quantizer/codebook": moved}, health

    def example(record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": augment(record["image"], rng)}

    def warnings(metrics: dict[str, float], step: int) -> list[str]:
        found = []
        if step >= 2 * codebook.WINDOW and metrics["usage"] < _COLLAPSED:
            found.append(
                f"the codebook has collapsed: {100 * metrics['usage']:.1f} % of {module.quantizer.size} codes were used in "
                f"the last {codebook.WINDOW} updates. Try codebook.revive = 100, codebook.start = 'kmeans', "
                "model.quantizer.unit = True with dim = 8, or model.quantizer.type = 'fsq'"
            )
        if judge is not None and step > options.start + 100 and metrics["loss_discriminator"] < _WON:
            found.append(
                f"the discriminator wins outright (loss {metrics['loss_discriminator']:.3f}): its verdict teaches "
                "the generator nothing. Try loss.lecam = 0.001, loss.r1 = 1, or a lower optim.players.discriminator.lr"
            )
        return found

    def weights():
        """What a new run starts from instead of what `init` draws."""
        params, extra = {}, {}
        if config.pretrained:
            found = pretrained.open_checkpoint(config.pretrained)
            variables, _ = found.variables(found.module())
            params = {"generator": variables.pop("params")}
            extra = {"generator": variables}
            if is_ema:
                extra["averaged"] = variables["codebook"]["quantizer"]["points"]
            if _takes_over(config, found):
                variables = found.discriminator[1]()
                params["discriminator"] = variables.pop("params")
                extra["discriminator"] = variables
        return params, extra if distance is None else extra | {"perceptual": distance.weights}

    return Task(
        init=init,
        loss=total_loss,
        example=example,
        evaluators=evaluators.factories(module, preprocess, distance),
        artifacts={"preprocess.json": preprocess.to_json()},
        pretrained=weights if config.pretrained or distance is not None else None,
        revise=revise,
        warnings=warnings,
    )


def _judged(judge, params, collections, pictures):
    """Logits of pictures, and the collections after them."""
    return judge.apply({"params": params, **collections}, pictures, True, mutable=list(collections))


def _with_last_kernel(generator, kernel):
    decoder = generator["decoder"]
    return generator | {"decoder": decoder | {"conv_out": decoder["conv_out"] | {"kernel": kernel}}}


def _check(config: ConfigDict) -> None:
    options = config.loss
    if config.model.architecture != "vqgan":
        raise ConfigError(
            f"config.model.architecture = {config.model.architecture!r} cannot be trained here; vqgan with quantizer.type = "
            "'gumbel' is nearest to it"
        )
    kind, book = config.model.quantizer.type, config.codebook
    if book.start not in ("random", "kmeans"):
        raise ConfigError(f"config.codebook.start = {book.start!r}; it must be one of random, kmeans")
    if book.revive < 0:
        raise ConfigError(f"config.codebook.revive = {book.revive} must be 0 or more")
    for key, none in (("start", "random"), ("revive", 0)):
        if book[key] != none and kind in quantize.TYPES and kind not in quantize.LEARNT:
            raise ConfigError(
                f"config.codebook.{key} = {book[key]!r}; it must be {none!r} for {kind}, which has no codebook of points"
            )
    if options.pixels not in loss.PIXELS:
        raise ConfigError(f"config.loss.pixels = {options.pixels!r}; it must be one of {', '.join(loss.PIXELS)}")
    if options.adversarial not in (*loss.ADVERSARIAL, "none"):
        allowed = ", ".join((*loss.ADVERSARIAL, "none"))
        raise ConfigError(f"config.loss.adversarial = {options.adversarial!r}; it must be one of {allowed}")
    for key in ("pixel_weight", "codebook_weight", "weight", "start", "alone", "lecam", "r1"):
        if options[key] < 0:
            raise ConfigError(f"config.loss.{key} = {options[key]} must be 0 or more")
    if options.rise < 1:
        raise ConfigError(f"config.loss.rise = {options.rise} must be at least 1")
