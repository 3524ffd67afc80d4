"""VQGAN as a task: two players, one scalar; generator and quantiser against a patch discriminator.

Batches: `image` uint8 [B, size, size, 3]. `extra`: `generator` and `discriminator` (collections that change without a
gradient: an EMA codebook, batch statistics), `averaged` (an EMA codebook's points, as evaluation uses them), `usage`
(`vqgan_jax.codebook`), `lecam`, `perceptual` (frozen weights).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from train_jax import sharding
from train_jax.config import adopt
from train_jax.data import images
from train_jax.errors import ConfigError
from train_jax.task import Task, averaged
from vqgan_jax import averaging, codebook, discriminator, evaluators, model, perceptual, pretrained, quantize
from vqgan_jax import loss as loss_lib
from vqgan_jax.example import ImageExample
from vqgan_jax.gan import TwoPlayerLoss

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
    c.loss.disc_start = 0  # update at which the discriminator begins to learn
    c.loss.disc_warmup = 0  # updates from then on in which it learns without the adversarial loss
    c.loss.disc_ramp = 1  # updates in which the weight of the adversarial loss then rises from 0 to the whole
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
    preprocess = images.Preprocess(size=config.model.resolution, mean=HALF, std=HALF, **config.preprocess)
    augment = images.Augment(preprocess, tuple(config.augment.scale), config.augment.flip)
    generator = model.build(config.model)
    players = Players(
        config,
        generator,
        discriminator.build(config.discriminator, model.DTYPES) if config.loss.adversarial != "none" else None,
        perceptual.open_distance(config.perceptual),
        codebook_rule(config),
    )
    two_player_loss = TwoPlayerLoss(
        generator, players.discriminator, players.distance, config, keeps_latents=players.rule.needs_latents
    )

    def loss(params, extra, batch, rng, step):
        return two_player_loss(params, extra, images.normalize(batch["image"], HALF, HALF), rng, step)

    starts_from_weights = bool(config.pretrained) or players.distance is not None
    return Task(
        init=players.init,
        loss=loss,
        example=ImageExample(augment),
        evaluators=evaluators.factories(generator, preprocess, players.distance),
        artifacts={"preprocess.json": preprocess.to_json()},
        pretrained=players.pretrained if starts_from_weights else None,
        revise=players.revise,
        warnings=players.warnings,
    )


def codebook_rule(config: ConfigDict) -> codebook.Rule:
    """How the run's codebook changes without a gradient."""
    quantizer = config.model.quantizer
    return codebook.Rule(
        num_codes=quantizer.size,
        is_ema=quantizer.type == "ema",
        decay=quantizer.decay,
        revive_after=config.codebook.revive,
        kmeans=config.codebook.start == "kmeans" and not config.pretrained,
    )


@dataclasses.dataclass(frozen=True)
class Players:
    """Generator and discriminator of a run: how they begin, and what changes them without a gradient.

    Attributes:
      config: the run's.
      discriminator, distance: None where the run has none.
    """

    config: ConfigDict
    generator: nn.Module
    discriminator: nn.Module | None
    distance: perceptual.Distance | None
    rule: codebook.Rule

    def init(self, rng, batch):
        """`Task.init`."""
        generator_key, discriminator_key = jax.random.split(rng)
        size = self.config.model.resolution
        x = jnp.zeros((1, size, size, 3))
        variables = self.generator.init({"params": generator_key, "dropout": generator_key}, x)
        params, extra = {"generator": variables.pop("params")}, {"generator": variables}
        if self.rule.is_ema:
            extra["averaged"] = jnp.copy(variables["codebook"]["quantizer"]["points"])
        if self.discriminator is not None:
            variables = self.discriminator.init(discriminator_key, x)
            params["discriminator"] = variables.pop("params")
            extra["discriminator"] = variables
            if self.config.loss.lecam:
                extra["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        extra["usage"] = codebook.initial_usage(self.generator.quantizer.size)
        if self.distance is not None:
            extra["perceptual"] = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), self.distance.weights)
        return params, extra

    def pretrained(self):
        """`Task.pretrained`: the weights that a new run starts from instead of what `init` draws."""
        params, extra = {}, {}
        if self.config.pretrained:
            checkpoint = pretrained.open_checkpoint(self.config.pretrained)
            variables, _ = checkpoint.variables(checkpoint.module())
            params, extra = {"generator": variables.pop("params")}, {"generator": variables}
            if self.rule.is_ema:
                extra["averaged"] = variables["codebook"]["quantizer"]["points"]
            if _takes_over(self.config, checkpoint):
                variables = checkpoint.discriminator[1]()
                params["discriminator"] = variables.pop("params")
                extra["discriminator"] = variables
        return params, extra if self.distance is None else extra | {"perceptual": self.distance.weights}

    def revise(self, params, extra, statistics, rng, step):
        """`Task.revise`: codebook, its usage and all running means, by all micro-batches of an update at once."""
        mesh = jax.sharding.get_abstract_mesh()
        codes = sharding.join_batch(statistics["codes"], mesh)
        is_first = jnp.all(extra["usage"]["last"] < 0)
        usage, metrics = codebook.update_usage(extra["usage"], codes, step)
        means = {name: x for name, x in statistics.items() if name not in ("codes", "latents")}
        extra = extra | averaged(means)
        if not self.rule.needs_latents:
            return params, extra | {"usage": usage}, {}, metrics
        latents = sharding.join_batch(statistics["latents"], mesh)
        generator = params["generator"]
        if self.rule.is_ema:
            book = extra["generator"]["codebook"]["quantizer"]
        else:
            book = {"points": generator["quantizer"]["codebook"]}
        usage, book, moved = self.rule.update(usage, book, codes, latents, rng, step, is_first)
        extra = extra | {"usage": usage}
        if self.rule.is_ema:
            decay = averaging.decay(self.config)
            average = averaging.follow(extra["averaged"], book["points"], moved, step, decay)
            return params, extra | {"averaged": average, "generator": {"codebook": {"quantizer": book}}}, {}, metrics
        generator = generator | {"quantizer": generator["quantizer"] | {"codebook": book["points"]}}
        return params | {"generator": generator}, extra, {"generator/quantizer/codebook": moved}, metrics

    def warnings(self, metrics: dict[str, float], step: int) -> list[str]:
        """`Task.warnings`."""
        sentences = []
        if step >= 2 * codebook.WINDOW and metrics["usage"] < _COLLAPSED:
            sentences.append(
                f"the codebook has collapsed: {100 * metrics['usage']:.1f} % of {self.generator.quantizer.size} codes were "
                f"used in the last {codebook.WINDOW} updates. Try codebook.revive = 100, codebook.start = 'kmeans', "
                "model.quantizer.unit = True with dim = 8, or model.quantizer.type = 'fsq'"
            )
        trains = self.discriminator is not None and step > self.config.loss.disc_start + 100
        if trains and metrics["loss_discriminator"] < _WON:
            sentences.append(
                f"the discriminator wins outright (loss {metrics['loss_discriminator']:.3f}): its logits teach "
                "the generator nothing. Try loss.lecam = 0.001, loss.r1 = 1, or a lower optim.players.discriminator.lr"
            )
        return sentences


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
    if options.pixels not in loss_lib.PIXELS:
        raise ConfigError(f"config.loss.pixels = {options.pixels!r}; it must be one of {', '.join(loss_lib.PIXELS)}")
    if options.adversarial not in (*loss_lib.ADVERSARIAL, "none"):
        allowed = ", ".join((*loss_lib.ADVERSARIAL, "none"))
        raise ConfigError(f"config.loss.adversarial = {options.adversarial!r}; it must be one of {allowed}")
    for key in ("pixel_weight", "codebook_weight", "weight", "disc_start", "disc_warmup", "lecam", "r1"):
        if options[key] < 0:
            raise ConfigError(f"config.loss.{key} = {options[key]} must be 0 or more")
    if options.disc_ramp < 1:
        raise ConfigError(f"config.loss.disc_ramp = {options.disc_ramp} must be at least 1")
