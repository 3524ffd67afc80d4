"""The training task of a second stage, an autoregressive model of a condition and the codes of a frozen VQGAN.

Batches contain `condition` int32 [B, C], flags of the condition bool [B], and `codes` int32 [B, h, w] (computed once and
stored on disk) or, with `codes.cached = False`, `image` uint8 [B, size, size, 3]. The run directory contains a copy of the
VQGAN, `vqgan.safetensors`, and does not depend on the original.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nn_jax.code_transformer import CodeTransformer
from train_jax import paths, sharding
from train_jax.compute import TransformerCompute
from train_jax.config import adopt
from train_jax.data import images
from train_jax.data.options import AugmentOptions
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.placeholders import make_record
from train_jax.profiling import BACKWARD, dense_flops, transformer_flops
from train_jax.task import Task
from train_jax.weights.layout import flatten, unflatten
from vqgan_jax import codes as codes_lib
from vqgan_jax import vqgan as vqgan_lib
from vqgan_jax.model import VQGANOptions
from vqgan_jax.pretrained.checkpoint import convert_errors
from vqgan_jax.stage2 import evaluators, model
from vqgan_jax.stage2.checkpoint import VQGAN, Stage2Checkpoint
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.example import StreamExample
from vqgan_jax.stage2.likelihood import NATS_PER_BIT, negative_log_likelihoods
from vqgan_jax.stage2.model import CodeTransformerOptions
from vqgan_jax.stage2.placeholders import write_first_stage

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VQGANPathOptions(Options):
    """Options of the frozen first stage."""

    path: str = option("", "VQGAN of the codes: anything that vqgan_jax.load opens")
    size: int = option(0, "side of the images in pixels; 0: training size of the VQGAN", least=0)


@dataclasses.dataclass(frozen=True)
class CodesOptions(Options):
    """Options of the training images' codes."""

    cached: bool = option(True, "compute codes once; False: compute codes of augmented images in every update")
    dir: str = option("", "directory of code files; empty: in the run directory")
    flip: bool = option(False, "also encode flipped images, which makes 'left of' in captions wrong")


@dataclasses.dataclass(frozen=True)
class Stage2TaskOptions(Options):
    """Options of a second stage's task, except options of the condition."""

    pretrained: str = option("", "second stage to train on from, which also sets the model, its condition and its VQGAN")
    vqgan: VQGANPathOptions = VQGANPathOptions()
    codes: CodesOptions = CodesOptions()
    augment: AugmentOptions = AugmentOptions()  # for codes.cached = False
    model: CodeTransformerOptions = CodeTransformerOptions()
    compute: TransformerCompute = TransformerCompute()
    dropout: float = option(0.1, "dropout rate of embeddings and blocks", least=0, below=1)
    condition_dropout: float = option(
        0.1, "probability of dropping the condition, for classifier-free guidance (arXiv 2207.12598)", least=0, below=1
    )

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return {"model": self.model.identity(), "vqgan": self.vqgan.identity()}

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        is_plain = self.augment.is_identity or not self.codes.cached
        self.require(is_plain, path, "augment", "the default with codes.cached = True")
        may_flip = self.codes.cached or not self.codes.flip
        self.require(may_flip, path, "codes.flip", "False with codes.cached = False; set augment.flip instead")


PROGRAMS = {"sample": "vqgan_jax.stage2.plan"}


def write_placeholders(
    config: ConfigDict, folder: Path, start: Stage2Checkpoint | None = None
) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a VQGAN that is named by its config by a placeholder in `folder`; see `train_jax.task`.

    A run from `start`, the checkpoint `config.pretrained`, has its VQGAN.
    """
    first_stage = write_first_stage(config, folder) if start is None else start.first_stage.module()
    side = (config.vqgan.size or first_stage.size) // first_stage.factor  # `pretrained` sets the size
    return config, make_record(codes=np.zeros((1, side, side), np.int32))


def adopt_checkpoint(
    config: ConfigDict, stated: ConfigDict, checkpoint: Stage2Checkpoint, options: Mapping[str, Any], example: str
) -> None:
    """Completes a config from the second stage `config.pretrained`. Raises ConfigError for contradictions.

    Args:
      stated: options that the user's config sets.
      options: options of `config.model` of the checkpoint.
      example: see `train_jax.config.adopt`.
    """
    adopt(config.model, stated.get("model", {}), options, "model", example=example)
    with convert_errors(checkpoint.name):
        size = checkpoint.size or VQGANOptions.parse(checkpoint.first_stage.model, "model").resolution
    if config.vqgan.size not in (0, size):
        raise ConfigError(
            f"config.vqgan.size = {config.vqgan.size}, but config.pretrained was trained on the codes of {size} x {size} "
            "pixels: leave it out"
        )
    config.vqgan.size = size


def open_start(
    config: ConfigDict, workdir: Path | None, open_pretrained: Callable[[ConfigDict], Stage2Checkpoint]
) -> Stage2Checkpoint | None:
    """Opens `config.pretrained` for a new run; returns None without it, and for a run that has its files already."""
    is_started = workdir is not None and (workdir / VQGAN).is_file()
    return open_pretrained(config) if config.pretrained and not is_started else None


def open_vqgan(config: ConfigDict, workdir: Path | None, start: Stage2Checkpoint | None = None) -> vqgan_lib.Vqgan:
    """Opens the first stage: the copy in the run directory; for a new run that of `start`, or at `config.vqgan.path`."""
    if start is not None:
        return vqgan_lib.assemble_checkpoint(start.first_stage, None)
    return codes_lib.open_tokenizer(config.vqgan.path, workdir / VQGAN if workdir else None)


def make(
    config: ConfigDict,
    workdir: Path | None,
    vq: vqgan_lib.Vqgan,
    options: CodeTransformerOptions,
    condition: Condition,
    *,
    open_pretrained: Callable[[ConfigDict], Stage2Checkpoint] | None = None,
    artifacts: Mapping[str, str] | None = None,
    more_evaluators: Callable | None = None,
) -> Task:
    """Builds the task from a resolved config. Raises ConfigError for invalid options.

    Args:
      vq: first stage; see `open_vqgan`.
      options: parsed options of `config.model`.
      open_pretrained: function that opens `config.pretrained`, if it is set.
      artifacts: files to store with the weights, which the condition needs.
      more_evaluators: `(evaluators.EvaluatedModel) -> factories` of additional evaluators.
    """
    size = config.vqgan.size or vq.size
    if size % vq.factor:
        raise ConfigError(f"config.vqgan.size = {size} must be divisible by {vq.factor}, the side of a code in pixels")
    compute = TransformerCompute.parse(config.compute, "compute")
    grid = (size // vq.factor,) * 2
    module = model.build(options, condition, vq.num_codes, grid, compute, config.dropout)
    records = codes_lib.make_records(vq, config.codes, size, workdir)
    augment = AugmentOptions.parse(config.augment, "augment").make(images.Preprocess(size))
    evaluated = module.clone(blocks={**module.blocks, "float8": False})
    stage = evaluators.EvaluatedModel(evaluated, condition, vq, records)

    def init(rng, batch):
        tokens, codes = jnp.asarray(condition.null)[None], jnp.zeros((1, module.length), jnp.int32)
        extra = {}
        if not config.codes.cached:  # so that weights are not compiled as constants; `load_pretrained` sets the values
            extra = {"vqgan": jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), vq.variables)}
        return {"generator": module.init(rng, tokens, codes)["params"]}, extra

    sequence_loss = make_loss(module, condition, config)

    def loss(params, extra, batch, rng, step):
        codes = batch["codes"] if config.codes.cached else vq.encode_with(extra["vqgan"], batch["image"])
        value, metrics = sequence_loss(params["generator"], batch["condition"], codes, rng)
        flags = {name: jnp.mean(x.astype(jnp.float32)) for name, x in batch.items() if x.dtype == bool}
        return value, (metrics | flags, {})

    def load_pretrained():
        params, extra = {}, {}
        if config.pretrained:
            weights, name = open_pretrained(config).read()
            params["generator"] = unflatten(flatten(weights), compute.scan)
            model.check_shapes(module, params["generator"], name)
            log.info("starting from %s", name)
        if not config.codes.cached:
            extra["vqgan"] = jax.tree.map(np.asarray, vq.variables)
        return params, extra

    starts_from_weights = bool(config.pretrained) or not config.codes.cached
    uniform = float(np.log2(module.code_offset + module.num_codes))

    def warnings(metrics: dict[str, float], step: int) -> list[str]:
        if step < max(2 * config.optim.warmup_steps, 100) or metrics["bits_per_code"] < uniform:
            return []
        return [
            f"the model is worse than the uniform distribution: {metrics['bits_per_code']:.2f} bits per code, "
            f"uniform has {uniform:.2f}. Try a lower optim.lr or more optim.warmup_steps; see docs/results.md"
        ]

    return Task(
        init=init,
        loss=loss,
        example=StreamExample(condition, None if config.codes.cached else augment),
        evaluators=evaluators.make_factories(stage) | (more_evaluators(stage) if more_evaluators else {}),
        artifacts={**(artifacts or {}), VQGAN: vqgan_lib.to_bytes(vq)},
        records=records if config.codes.cached else None,
        pretrained=load_pretrained if starts_from_weights else None,
        warnings=warnings,
        mean_over_examples=True,
        flops=float(BACKWARD * _forward_flops(module, options)),
    )


def make_evaluation(config: ConfigDict, checkpoint: Stage2Checkpoint, more_evaluators: Callable | None = None) -> Task:
    """Builds a task that evaluates public weights and cannot be trained; see `open_weights` in `train_jax.task`.

    Code files are in `config.codes.dir`, by default in the user's cache folder.
    """
    vq = vqgan_lib.assemble_checkpoint(checkpoint.first_stage, None)
    size = checkpoint.size or vq.size
    compute = dataclasses.replace(checkpoint.compute, dtype=config.compute.dtype)
    module = model.build(checkpoint.options, checkpoint.condition, vq.num_codes, (size // vq.factor,) * 2, compute)
    config.codes.dir = config.codes.dir or str(paths.cache() / "codes")
    records = codes_lib.make_records(vq, config.codes, size, None)
    stage = evaluators.EvaluatedModel(module, checkpoint.condition, vq, records)

    def init(rng, batch):
        tokens, codes = jnp.asarray(checkpoint.condition.null)[None], jnp.zeros((1, module.length), jnp.int32)
        return {"generator": module.init(rng, tokens, codes)["params"]}, {}

    def refuse(*arguments):
        raise ConfigError(f"{checkpoint.name} can be evaluated, but not trained")

    return Task(
        init=init,
        loss=refuse,
        example=refuse,
        evaluators=evaluators.make_factories(stage) | (more_evaluators(stage) if more_evaluators else {}),
        artifacts={"condition": checkpoint.condition.fingerprint, "vqgan": vq.fingerprint},
        pretrained=lambda: ({"generator": checkpoint.read()[0]}, {}),
    )


def make_loss(module: CodeTransformer, condition: Condition, config: ConfigDict) -> Callable:
    """Builds the cross-entropy loss, `(params, tokens [B, C, …], codes [B, h, w], rng) -> (loss, metrics)`.

    If the model predicts condition tokens, the loss is the weighted sum of the mean losses of condition tokens and codes
    (arXiv 2102.12092, section 2.2). The mean over condition tokens includes the scored tokens of conditions that are kept.
    """

    def loss(params, tokens, codes, rng):
        condition_key, dropout_key = jax.random.split(rng)
        is_dropped = jax.random.bernoulli(condition_key, config.condition_dropout, (len(codes),))
        tokens = jnp.where(is_dropped.reshape(-1, *[1] * (tokens.ndim - 1)), condition.drop(tokens), tokens)
        codes = codes.reshape(len(codes), -1)
        logits = module.apply({"params": params}, tokens, codes, False, rngs={"dropout": dropout_key})
        condition_nats, code_nats = negative_log_likelihoods(module, logits, tokens, codes)
        accuracy = jnp.mean(jnp.argmax(logits[1][..., module.code_offset :], axis=-1) == codes)
        code_loss = jnp.mean(code_nats)
        metrics = {"bits_per_code": code_loss / NATS_PER_BIT, "accuracy": accuracy}
        if condition_nats is None:
            return code_loss, metrics
        scored = condition.likelihood_mask(tokens[:, 1:]) & ~is_dropped[:, None]
        condition_loss = sharding.weighted_mean(condition_nats, scored)
        metrics[f"bits_per_{condition.kind}_token"] = condition_loss / NATS_PER_BIT
        return config.loss.condition * condition_loss + config.loss.codes * code_loss, metrics

    return loss


def _forward_flops(module: CodeTransformer, options: CodeTransformerOptions) -> int:
    size = {"width": options.width, "mlp_ratio": options.mlp_ratio, "gated": options.gated}
    size["kv_share"] = (options.kv_heads or options.heads) / options.heads
    context = module.condition_length if options.encoder_depth else 0
    stream = module.prefix_length + module.length - 1
    flops = transformer_flops(stream, depth=options.depth, context=context, **size)
    flops += transformer_flops(context, depth=options.encoder_depth, **size)
    if module.predicts_condition:
        flops += dense_flops(module.condition_length - 1, options.width, module.condition_size)
    return flops + dense_flops(module.length, options.width, module.code_offset + module.num_codes)
