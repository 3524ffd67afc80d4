"""The VQGAN training task: an autoencoder with quantiser against a patch discriminator, in one scalar loss.

Batches contain `image`, uint8 [B, size, size, 3]. `extra` contains `generator` and `discriminator` (collections without
gradient: an EMA codebook, batch statistics), `averaged` (moving average of an EMA codebook's points), `usage` (state of
`vqgan_jax.codebook`), `lecam` and `perceptual` (frozen weights).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from train_jax import sharding
from train_jax.compute import Compute
from train_jax.config import adopt
from train_jax.data import images
from train_jax.data.options import AugmentOptions, PreprocessOptions
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.placeholders import make_record
from train_jax.task import Task, average_statistics
from vqgan_jax import averaging, card, codebook, discriminator, evaluators, model, perceptual, pretrained, quantize
from vqgan_jax import loss as loss_lib
from vqgan_jax.discriminator import DiscriminatorOptions
from vqgan_jax.example import ImageExample
from vqgan_jax.gan import TwoPlayerLoss
from vqgan_jax.model import VQGANOptions
from vqgan_jax.perceptual import MIN_SIDE, PerceptualOptions
from vqgan_jax.placeholders import write_lpips

HALF = (0.5, 0.5, 0.5)  # mean and standard deviation that normalise pixels to [-1, 1]
_FINETUNE = "vqgan/finetune"  # shipped config that starts from a checkpoint
_COLLAPSED_USAGE = 0.05  # fraction of used codes below which a warning is logged
_DOMINANT_LOSS = 0.02  # discriminator loss below which a warning is logged


@dataclasses.dataclass(frozen=True)
class CodebookOptions(Options):
    """Options of gradient-free codebook updates."""

    start: str = option(
        "random",
        "initial codebook; kmeans: centres of the first batch's latents; ignored with pretrained",
        choices=("random", "kmeans"),
    )
    revive: int = option(0, "updates after which an unused code is replaced by a latent; 0: never", least=0)


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """Options of the generator's and discriminator's losses, except the perceptual loss."""

    pixels: str = option("l1", "pixel loss of the reconstruction", choices=loss_lib.PIXELS)
    pixel_weight: float = option(1.0, "weight of the pixel loss", least=0)
    codebook_weight: float = option(1.0, "weight of the codebook and commitment losses", least=0)
    adversarial: str = option("hinge", "adversarial loss; none: no discriminator", choices=(*loss_lib.ADVERSARIAL, "none"))
    weight: float = option(0.8, "weight of the adversarial loss, multiplied by the adaptive weight", least=0)
    adaptive: bool = option(True, "use the adaptive weight, a ratio of gradient norms at the last layer")
    disc_start: int = option(0, "update at which the discriminator starts to train", least=0)
    disc_warmup: int = option(0, "updates after disc_start without adversarial loss", least=0)
    disc_ramp: int = option(1, "updates of the linear warm-up of the adversarial loss after disc_warmup", least=1)
    lecam: float = option(0.0, "weight of LeCam regularisation (arXiv 2104.03310); 0: none", least=0)
    r1: float = option(0.0, "weight of the R1 gradient penalty (arXiv 1801.04406); 0: none", least=0)
    r1_interval: int = option(
        1, "updates between R1 penalties, each multiplied by their number (arXiv 1912.04958, section 3.1)", least=1
    )


@dataclasses.dataclass(frozen=True)
class VQGANTaskOptions(Options):
    """Options of the VQGAN task."""

    pretrained: str = option("", "checkpoint to finetune, which also sets the model; see vqgan_jax.load")
    model: VQGANOptions = VQGANOptions()
    compute: Compute = Compute()
    dropout: float = option(0.0, "dropout rate of residual blocks", least=0, below=1)
    codebook: CodebookOptions = CodebookOptions()
    discriminator: DiscriminatorOptions = DiscriminatorOptions()
    fresh_discriminator: bool = option(False, "with pretrained: do not load the checkpoint's discriminator")
    perceptual: PerceptualOptions = PerceptualOptions()
    loss: LossOptions = LossOptions()
    preprocess: PreprocessOptions = PreprocessOptions()
    augment: AugmentOptions = AugmentOptions()

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return {name: getattr(self, name).identity() for name in ("model", "preprocess")}

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        if self.model.architecture != "vqgan":
            raise ConfigError(
                f"config.model.architecture = {self.model.architecture!r} cannot be trained; the closest "
                "alternative is vqgan with quantizer.type = 'gumbel'"
            )
        is_large = self.perceptual.type != "lpips" or self.model.resolution >= MIN_SIDE
        self.require(is_large, path, "model.resolution", f"at least {MIN_SIDE} for perceptual.type = 'lpips'")
        kind = self.model.quantizer.type
        if kind not in quantize.WITH_CODEBOOK:
            self.require(
                self.codebook == CodebookOptions(),
                path,
                "codebook",
                f"the default for {kind}, which has no codebook of points",
            )


OPTIONS, EVALUATORS, CARD = VQGANTaskOptions, evaluators.EVALUATORS, card.VQGAN
PROGRAMS = {"encode": "vqgan_jax.plan", "paint": "vqgan_jax.guided.plan"}


def complete(config: ConfigDict, stated: ConfigDict) -> None:
    """Copies the model options of `config.pretrained` to the config. Raises ConfigError for contradictions."""
    if config.pretrained:
        checkpoint = pretrained.open_checkpoint(config.pretrained)
        stated_options = stated.get("model", {})
        options = _rescale_attention(checkpoint.model, stated_options.get("resolution"))
        free_options = ("resolution", *VQGANOptions.free_options())
        adopt(config.model, stated_options, options, "model", free=free_options, example=_FINETUNE)
        if _continues_discriminator(config, checkpoint):
            stated_options = stated.get("discriminator", {})
            adopt(config.discriminator, stated_options, checkpoint.discriminator[0], "discriminator", example=_FINETUNE)


def _rescale_attention(options: Mapping, resolution: int | None) -> Mapping:
    """Returns the model options for another resolution, with attention in the same layers."""
    if resolution is None or "attention" not in options:
        return options
    attention = tuple(size * resolution // options["resolution"] for size in options["attention"])
    return {**options, "attention": attention}


def _continues_discriminator(config: ConfigDict, checkpoint: pretrained.Checkpoint) -> bool:
    """Returns whether a new run loads the checkpoint's discriminator."""
    return checkpoint.discriminator is not None and config.loss.adversarial != "none" and not config.fresh_discriminator


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces missing weights of LPIPS by random ones in `folder`; see `train_jax.task`."""
    if config.perceptual.type == "lpips" and not Path(config.perceptual.path or folder / "none").exists():
        config.perceptual.path = write_lpips(folder / "lpips.safetensors")
    return config, make_record()


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Builds the task from a resolved config. Raises ConfigError for inconsistent options."""
    preprocess = images.Preprocess(size=config.model.resolution, mean=HALF, std=HALF, **config.preprocess)
    augment = AugmentOptions.parse(config.augment, "augment").make(preprocess)
    compute = Compute.parse(config.compute, "compute")
    generator = model.build(config.model, compute, config.dropout)
    players = Players(
        config,
        generator,
        discriminator.build(config.discriminator, compute) if config.loss.adversarial != "none" else None,
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
        evaluators=evaluators.make_factories(generator, preprocess, players.distance),
        artifacts={"preprocess.json": preprocess.to_json()},
        pretrained=players.load_pretrained if starts_from_weights else None,
        revise=players.revise,
        warnings=players.warnings,
    )


def codebook_rule(config: ConfigDict) -> codebook.Rule:
    """Builds the rule for gradient-free updates of the run's codebook."""
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
    """Generator and discriminator of a run, with their initialisation and gradient-free updates.

    Attributes:
      config: config of the run.
      discriminator, distance: None if the run does not use a discriminator or a perceptual distance.
    """

    config: ConfigDict
    generator: nn.Module
    discriminator: nn.Module | None
    distance: perceptual.Distance | None
    rule: codebook.Rule

    def init(self, rng, batch):
        """Implements `Task.init`."""
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
        extra["usage"] = codebook.init_usage(self.generator.quantizer.size)
        if self.distance is not None:
            extra["perceptual"] = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), self.distance.weights)
        return params, extra

    def load_pretrained(self):
        """Implements `Task.pretrained`: loads the weights that replace random initial values."""
        params, extra = {}, {}
        if self.config.pretrained:
            checkpoint = pretrained.open_checkpoint(self.config.pretrained)
            variables, _ = checkpoint.variables(checkpoint.module())
            params, extra = {"generator": variables.pop("params")}, {"generator": variables}
            if self.rule.is_ema:
                extra["averaged"] = variables["codebook"]["quantizer"]["points"]
            if _continues_discriminator(self.config, checkpoint):
                variables = checkpoint.discriminator[1]()
                params["discriminator"] = variables.pop("params")
                extra["discriminator"] = variables
        return params, extra if self.distance is None else extra | {"perceptual": self.distance.weights}

    def revise(self, params, extra, statistics, rng, step):
        """Implements `Task.revise`: updates codebook, usage and running means from all micro-batches of an update."""
        codes = sharding.join_batch(statistics["codes"])
        is_first = jnp.all(extra["usage"]["last"] < 0)
        usage, metrics = codebook.update_usage(extra["usage"], codes, step)
        means = {name: x for name, x in statistics.items() if name not in ("codes", "latents")}
        extra = extra | average_statistics(means)
        if not self.rule.needs_latents:
            return params, extra | {"usage": usage}, {}, metrics
        latents = sharding.join_batch(statistics["latents"])
        generator = params["generator"]
        if self.rule.is_ema:
            book = extra["generator"]["codebook"]["quantizer"]
        else:
            book = {"points": generator["quantizer"]["codebook"]}
        usage, book, moved = self.rule.update(usage, book, codes, latents, rng, step, is_first)
        extra = extra | {"usage": usage}
        if self.rule.is_ema:
            decay = averaging.get_decay(self.config)
            average = averaging.update_average(extra["averaged"], book["points"], moved, step, decay)
            return params, extra | {"averaged": average, "generator": {"codebook": {"quantizer": book}}}, {}, metrics
        generator = generator | {"quantizer": generator["quantizer"] | {"codebook": book["points"]}}
        return params | {"generator": generator}, extra, {"generator/quantizer/codebook": moved}, metrics

    def warnings(self, metrics: dict[str, float], step: int) -> list[str]:
        """Implements `Task.warnings`."""
        messages = []
        if step >= 2 * codebook.WINDOW and metrics["usage"] < _COLLAPSED_USAGE:
            messages.append(
                f"the codebook has collapsed: {100 * metrics['usage']:.1f} % of {self.generator.quantizer.size} codes were "
                f"used in the last {codebook.WINDOW} updates. Try codebook.revive = 100, codebook.start = 'kmeans', "
                "model.quantizer.unit = True with dim = 8, or model.quantizer.type = 'fsq'"
            )
        trains = self.discriminator is not None and step > self.config.loss.disc_start + 100
        if trains and metrics["loss_discriminator"] < _DOMINANT_LOSS:
            messages.append(
                f"the discriminator dominates (loss {metrics['loss_discriminator']:.3f}): its logits give "
                "the generator no useful gradient. Try loss.lecam = 0.001, loss.r1 = 1, or a lower "
                "optim.players.discriminator.lr"
            )
        return messages
