"""Evaluators of a second stage: bits per code of held-out images, and samples with distances such as FID."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from nn_jax.code_transformer import CodeTransformer
from nn_jax.decoding import Sampling, has_filters
from train_jax import inference
from train_jax.config import EvaluatorOptions
from train_jax.data.images import Preprocess
from train_jax.errors import ConfigError, in_float32
from train_jax.options import option
from train_jax.pictures import image_grid
from vqgan_jax.features import open_features, take_images
from vqgan_jax.stage2 import sampling
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.likelihood import NATS_PER_BIT, entropy_bits, negative_log_likelihoods
from vqgan_jax.vqgan import Vqgan

_MAX_SHOWN = 64  # maximum number of images in a grid of samples


@dataclasses.dataclass(frozen=True)
class SamplingOptions(EvaluatorOptions):
    """Options of sampling; see `CodeGenerator.draw`."""

    n: int = option(8, "number of images per condition", least=1)
    seed: int = option(0, "random seed", least=0, below=2**32)
    temperature: float = option(1.0, "sampling temperature; 0: greedy decoding", least=0)
    top_k: int = option(0, "top-k filter: sample from the k most likely codes; 0: all", least=0)
    top_p: float = option(1.0, "nucleus filter: total probability of the codes to sample from", above=0, most=1)
    guidance: float = option(1.0, "classifier-free guidance scale; 1: none")

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        for key in ("guidance", "temperature"):
            self.require(in_float32(getattr(self, key)), path, key, "a number that float32 has")


@dataclasses.dataclass(frozen=True)
class SamplesOptions(SamplingOptions):
    """Options of the evaluator of samples."""

    conditions: tuple = option((), "conditions to sample from; (): the first texts of the split, or classes in turn")
    rows: int = option(6, "number of conditions, if `conditions` is empty", least=1)
    features: str = option("", "feature network of distances between samples and images; see vqgan_jax.features")


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions(EvaluatorOptions):
    """Options of the evaluator of the likelihood of held-out images given the first condition of each record."""


EVALUATORS = {"likelihood": LikelihoodOptions, "samples": SamplesOptions}


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """The second stage to evaluate.

    Attributes:
      records: `(source, asked_to_stop) -> records with codes`, as in the task.
    """

    module: CodeTransformer
    condition: Condition
    vqgan: Vqgan
    records: Callable

    @property
    def image_size(self) -> int:
        """Side of the decoded images in pixels."""
        return self.module.grid[0] * self.vqgan.factor


def make_factories(stage: EvaluatedModel) -> Mapping[str, Callable]:
    """Returns the evaluator factories `(options, context) -> evaluator`, by type."""
    return {"likelihood": functools.partial(Likelihood, stage), "samples": functools.partial(Samples, stage)}


class Likelihood:
    """Evaluates bits per code of held-out images, and bits per condition token if the model predicts conditions."""

    def __init__(self, stage: EvaluatedModel, options: ConfigDict, context):
        self._stage, self._context, self._batch_size = stage, context, options.batch_size
        source = context.source_of(options)
        stage.condition.check_source(source)
        # Codes are computed in the first evaluation, because the computation may take hours.
        self._records = functools.cache(lambda: stage.records(source, context.asked_to_stop))
        self._program = context.jit(self._sum_losses)

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns bits per code, and per condition token if the model predicts these; no pictures."""
        records, condition = self._records(), self._stage.condition

        def example(record, rng):
            return {"condition": condition.example(record, None)["condition"], "codes": record["codes"][0]}

        batches = self._context.batches(records, example, self._batch_size)
        outputs = ((self._program(params, extra, batch), real) for batch, real in batches)
        sums: dict[str, float] = {}
        for values, real in inference.fetch_overlapped(outputs):
            for name, x in values.items():
                sums[name] = sums.get(name, 0.0) + float(np.sum(x[:real], dtype=np.float64))
        metrics = {
            "bits_per_code": sums["code_nats"] / len(records) / NATS_PER_BIT,
            "unigram_bits_per_code": entropy_bits(records.histogram),
            "images": len(records),
        }
        if "condition_nats" in sums:
            nats = sums["condition_nats"] / sums["condition_tokens"]
            metrics[f"bits_per_{condition.kind}_token"] = nats / NATS_PER_BIT
        return metrics, {}

    def _sum_losses(self, params, extra, batch):
        tokens, codes = batch["condition"], batch["codes"]
        module = self._stage.module
        logits = module.apply({"params": params["generator"]}, tokens, codes.reshape(len(codes), -1))
        condition_nats, code_nats = negative_log_likelihoods(module, logits, tokens, codes)
        values = {"code_nats": jnp.mean(code_nats, axis=1)}
        if condition_nats is not None:
            scored = self._stage.condition.likelihood_mask(tokens[:, 1:])
            values["condition_nats"] = jnp.sum(condition_nats * scored, axis=1)
            values["condition_tokens"] = jnp.sum(scored, axis=1)
        return values


class Sampler:
    """Samples images like `CodeGenerator.draw`, with the run's weights on the run's mesh.

    All hosts sample jointly. One compiled program is used for all batches and evaluations.

    Args:
      options: n, seed, batch_size, temperature, top_k, top_p, guidance.
    """

    def __init__(self, stage: EvaluatedModel, options: ConfigDict, context, conditions: list[Any]):
        module, condition = stage.module, stage.condition
        self._stage, self._context, self._options = stage, context, options
        self._count = len(conditions)
        guided = options.guidance != 1
        tokens = condition.encode(conditions)
        # With guidance each sample has a second, unconditional row.
        null = np.broadcast_to(condition.drop(tokens), tokens.shape)
        self._tokens = np.stack([tokens, null] if guided else [tokens], axis=1)
        self._seeds = sampling.make_seeds(
            condition, conditions, sampling.first_samples(conditions, options.n), options.n, options.seed
        )
        settings = Sampling(options.temperature, options.top_k, options.top_p, options.guidance)
        filtered = has_filters(options.top_k, options.top_p)
        programs = sampling.build_programs(module)

        def sample(params, extra, batch):
            params, batch_size = params["generator"], len(batch["seeds"])
            unknown = jnp.zeros((batch_size, module.length), jnp.int32)
            requests = sampling.Requests(batch["seeds"], jnp.arange(module.length), unknown, unknown > 0)
            tokens = batch["tokens"].reshape(-1, *module.condition.row.shape)
            logits, caches = programs.prefill(params, tokens, jnp.zeros((len(tokens), 0), jnp.int32))
            # One segment: a compilation during training costs more than unused parts of a cache.
            carry = logits, [cache.grow(module.length) for cache in module.bind({}).empty_caches(len(tokens))]
            prefixes = tuple((cache,) for cache in caches)  # of each row its own
            codes, _, _ = programs.decode_chunk(params, settings, prefixes, carry, requests, 0, filtered, guided)
            return codes.reshape(-1, *module.grid)

        self._program = context.jit(sample)

    def sample_codes(self, params) -> np.ndarray:
        """Samples codes, int32 [conditions, n, h, w], on every host."""
        indices = list(np.ndindex(self._count, self._options.n))
        batches = self._context.batches(indices, self._make_example, min(self._options.batch_size, len(indices)))
        outputs = ((self._program(params, {}, batch), real) for batch, real in batches)
        codes = np.concatenate([codes[:real] for codes, real in inference.fetch_overlapped(outputs)])
        return codes.reshape(self._count, self._options.n, *self._stage.module.grid)

    def decode_images(self, codes: np.ndarray) -> UInt8[np.ndarray, "p n H W 3"]:
        """Decodes codes to images on every host; the computation is split over hosts."""
        images = inference.split_over_hosts(self._stage.vqgan.decode_uint8, codes.reshape(-1, *codes.shape[2:]))
        return images.reshape(*codes.shape[:2], *images.shape[1:])

    def _make_example(self, index: tuple[int, int], rng) -> dict[str, np.ndarray]:
        return {"tokens": self._tokens[index[0]], "seeds": self._seeds[index]}


class Samples:
    """Samples a grid with one row per condition; with `features`, evaluates distances from as many real images."""

    def __init__(self, stage: EvaluatedModel, options: ConfigDict, context):
        check_sampling(options, stage)
        self._stage = stage
        source = context.source_of(options)
        conditions = list(options.conditions) or stage.condition.from_source(source, options.rows)
        try:
            stage.condition.encode(conditions)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.evals.….conditions = {options.conditions!r}: {error}") from error
        self._sampler = Sampler(stage, options, context, conditions)
        self._features = open_features(options.features) if options.features else None
        if self._features is not None:
            records = take_images(source, len(conditions) * options.n)
            preprocess = Preprocess(stage.image_size)
            batches = context.batches(
                records, lambda record, rng: {"image": preprocess(record["image"])}, options.batch_size
            )
            images = inference.fetch_overlapped((context.replicate(batch["image"]), real) for batch, real in batches)
            self._originals = np.concatenate([self._features.extract(batch)[:real] for batch, real in images])

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the number of distinct codes and distances, and the grid."""
        codes = self._sampler.sample_codes(params)
        images = self._sampler.decode_images(codes)
        metrics = {"distinct_codes": float(len(np.unique(codes)))}
        if self._features is not None:
            features = self._features.extract(images.reshape(-1, *images.shape[2:]))
            metrics |= self._features.compare(features, self._originals)
        rows = max(1, _MAX_SHOWN // images.shape[1])
        return metrics, {"samples": image_grid([list(row) for row in images[:rows]])}


def check_sampling(options: ConfigDict, stage: EvaluatedModel) -> None:
    """Raises ConfigError before training for options that `CodeGenerator.draw` of this model would reject."""

    def require(holds: bool, key: str, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"config.evals.….{key} = {options[key]!r}; it must be {allowed}")

    can_guide = stage.condition.droppable and stage.condition.vocabulary_size != 1
    allowed = "1 where there is no condition, or config.condition_dropout is 0"
    require(options.guidance == 1 or can_guide, "guidance", allowed)
    require(options.top_k <= stage.module.num_codes, "top_k", f"in [0, {stage.module.num_codes}], 0 for all codes")
