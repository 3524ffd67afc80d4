"""Evaluator of the prior: sampled image embeddings of held-out captions beside the true ones."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dalle_jax.unclip.prior import make_seeds
from dalle_jax.unclip.prior_networks import EmbeddingStatistics
from dalle_jax.unclip.prior_stage import PRIOR_STAGE, PriorStage, make_keys
from dalle_jax.unclip.text_features import encode_text
from train_jax import inference
from train_jax.config import EvaluatorOptions
from train_jax.data.text import AnyTokenizer
from train_jax.errors import ConfigError, in_float32
from train_jax.options import option


@dataclasses.dataclass(frozen=True)
class EmbeddingsEvaluatorOptions(EvaluatorOptions):
    """Options of the evaluator of sampled embeddings."""

    guidance: float = option(1.0, "classifier-free guidance scale; 1: none")
    steps: int = option(25, "number of sampling steps", least=2)
    candidates: int = option(1, "number of samples, of which the one closest to the text is kept", least=1)
    examples: int = option(512, "number of records; 0: all", least=0)
    seed: int = option(0, "random seed", least=0, below=2**32)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(in_float32(self.guidance), path, "guidance", "a number that float32 has")


EVALUATORS = {"embeddings": EmbeddingsEvaluatorOptions}


def make_factories(stage: PriorStage, tokenizer: AnyTokenizer, records: Callable) -> Mapping[str, Callable]:
    """Makes the evaluator factories: type -> `(options, context) -> evaluator`.

    Args:
      records: `(source, asked_to_stop) -> records with embeddings`, as in the task.
    """
    return {"embeddings": functools.partial(Embeddings, stage, tokenizer, records)}


class Embeddings:
    """Mean cosines between sampled, true and text embeddings of first captions, and the squared error of the samples.

    `cosine`: sample and image; `text_cosine`: sample and text; `true_text_cosine`: image and text. `mse`: mean over
    components, in standardised units; that of the mean embedding is about 1.
    """

    def __init__(self, stage: PriorStage, tokenizer: AnyTokenizer, records: Callable, options: ConfigDict, context):
        self._stage, self._tokenizer, self._options, self._context = stage, tokenizer, options, context
        check_steps(stage.model.timesteps, options.steps)
        source = context.source_of(options)
        # Embeddings are computed in the first evaluation, because the computation may take long.
        self._records = functools.cache(lambda: records(source, context.asked_to_stop))
        self._null_ids, self._table = tokenizer.encode([""])[0], stage.model.make_steps(options.steps)
        self._program = context.jit(self._compare)

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns cosines and errors, of sampled and of true embeddings; no pictures."""
        records = self._records()
        indices = range(min(self._options.examples or len(records), len(records)))
        batches = self._context.batches(indices, self._make_example, self._options.batch_size)
        sums: dict[str, float] = {}
        outputs = ((self._program(params, extra, batch), real) for batch, real in batches)
        for values, real in inference.fetch_overlapped(outputs):
            for name, x in values.items():
                sums[name] = sums.get(name, 0.0) + float(np.sum(x[:real], dtype=np.float64))
        return {name: total / len(indices) for name, total in sums.items()} | {"examples": len(indices)}, {}

    def _make_example(self, index: int, rng) -> dict[str, np.ndarray]:
        record = self._records()[index]
        caption = record["captions"][0]
        seeds = make_seeds([caption], [index], 1, self._options.seed)[0, 0]
        return {"embedding": record["embedding"], "text": self._tokenizer.encode([caption])[0], "seeds": seeds}

    def _compare(self, params, extra, batch):
        options = self._options
        drawn = self._stage.draw(
            extra | params,
            batch["text"],
            jnp.asarray(self._null_ids),
            make_keys(batch["seeds"], PRIOR_STAGE),
            self._table,
            options.guidance,
            guided=options.guidance != 1,
            candidates=options.candidates,
        )
        text, true = encode_text(self._stage.tower, extra["text"], batch["text"]).embedding, batch["embedding"]
        statistics = EmbeddingStatistics(extra["mean"], extra["std"])
        error = statistics.standardize(drawn) - statistics.standardize(true)
        return {
            "cosine": cosine(drawn, true),
            "text_cosine": cosine(drawn, text),
            "true_text_cosine": cosine(true, text),
            "mse": jnp.mean(jnp.square(error), axis=1),
        }


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the cosines of the rows of two arrays [b, dim]."""
    return jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def check_steps(timesteps: int | None, steps: int) -> None:
    """Raises ConfigError for a number of sampling steps that the diffusion does not have; None: there is no diffusion."""
    if timesteps is not None and not 2 <= steps <= timesteps:
        raise ConfigError(f"config.evals.….steps = {steps}; it must be in [2, {timesteps}], the timesteps of training")
