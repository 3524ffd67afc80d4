"""Evaluators of the decoder: images of prompts, graded by the source's reader, and reconstructions of image embeddings."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from dalle_jax.evaluators import Drawings, PromptOptions
from dalle_jax.unclip.decoder_stage import DecoderStage, to_uint8
from dalle_jax.unclip.frozen_clip import FrozenClip
from dalle_jax.unclip.prior import Prior, PriorCheckpoint, make_seeds
from dalle_jax.unclip.prior_evaluators import check_steps
from dalle_jax.unclip.prior_stage import DECODER_STAGE, make_keys
from dalle_jax.unclip.samplers import make_steps
from train_jax import inference
from train_jax.config import EvaluatorOptions
from train_jax.data.images import Preprocess
from train_jax.errors import ConfigError, in_float32
from train_jax.options import option
from train_jax.pictures import image_grid
from vqgan_jax.stage2.sampling import first_samples

_MAX_SHOWN = 16  # columns of a grid


@dataclasses.dataclass(frozen=True)
class DecodingOptions(EvaluatorOptions):
    """Options of sampling from the decoder."""

    steps: int = option(25, "number of sampling steps", least=2)
    guidance: float = option(1.0, "classifier-free guidance scale; 1: none")
    seed: int = option(0, "random seed", least=0, below=2**32)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        super().check(path)
        self.require(in_float32(self.guidance), path, "guidance", "a number that float32 has")


@dataclasses.dataclass(frozen=True)
class DrawingOptions(PromptOptions, DecodingOptions):
    """Options of the accuracy of images of prompts."""

    prior_steps: int = option(25, "number of sampling steps of the prior", least=2)
    prior_guidance: float = option(1.0, "classifier-free guidance scale of the prior; 1: none")
    candidates: int = option(2, "number of embeddings, of which the one closest to the text is decoded", least=1)


@dataclasses.dataclass(frozen=True)
class ReconstructionOptions(DecodingOptions):
    """Options of the reconstruction of images from their embeddings, with the empty text."""

    examples: int = option(256, "number of records; 0: all", least=0)


EVALUATORS = {"drawing": DrawingOptions, "reconstruction": ReconstructionOptions}


@dataclasses.dataclass(frozen=True)
class EvaluatedDecoder:
    """The decoder to evaluate.

    Attributes:
      prior: checkpoint of the prior; None: images of prompts cannot be sampled.
      records: `(source, asked_to_stop) -> records with images and embeddings`, as in the task.
    """

    stage: DecoderStage
    frozen: FrozenClip
    prior: PriorCheckpoint | None
    records: Callable

    @functools.cached_property
    def loaded_prior(self) -> Prior:
        """The prior with its weights, which are read at its first use."""
        frozen = self.frozen
        return self.prior.load(frozen.tower, frozen.clip.variables["params"]["text"], frozen.tokenizer, None)


def make_factories(model: EvaluatedDecoder) -> Mapping[str, Callable]:
    """Makes the evaluator factories: type -> `(options, context) -> evaluator`."""
    drawing = functools.partial(Drawings, functools.partial(_make_painter, model), model.stage.size)
    return {"drawing": drawing, "reconstruction": functools.partial(Reconstruction, model)}


class _Decoder:
    """Decodes embeddings and texts with the run's weights on the run's mesh, by one compiled program."""

    def __init__(self, model: EvaluatedDecoder, options: ConfigDict, context):
        check_steps(model.stage.diffusion.timesteps, options.steps)
        stage, null_ids = model.stage, model.frozen.null_ids
        table = make_steps(stage.diffusion, options.steps)

        def decode(params, extra, batch):
            predict = stage.make_predict(
                extra | params,
                batch["embedding"],
                batch["text"],
                jnp.asarray(null_ids),
                options.guidance,
                guided=options.guidance != 1,
            )
            keys = make_keys(batch["seeds"], DECODER_STAGE)
            return to_uint8(stage.denoise(predict, stage.draw_noise(keys), keys, table, ancestral=True))

        self._context, self._batch_size, self._program = context, options.batch_size, context.jit(decode)

    def decode(self, params, extra, rows, make_example: Callable) -> UInt8[np.ndarray, "n H W 3"]:
        """Decodes `{"embedding", "text", "seeds"}` of each row, on every host."""
        batches = self._context.batches(rows, make_example, min(self._batch_size, len(rows)))
        extra = {"text": extra["text"]}
        outputs = ((self._program(params, extra, batch), real) for batch, real in batches)
        return np.concatenate([images[:real] for images, real in inference.fetch_overlapped(outputs)])


def _make_painter(model: EvaluatedDecoder, options: ConfigDict, context, prompts: list[str]) -> Callable:
    """Makes the painter of `Drawings`: embeddings are sampled from the prior once, and decoded in each evaluation."""
    if model.prior is None:
        raise ConfigError("config.prior.path is empty: the evaluator 'drawing' needs a prior, for embeddings of its prompts")
    check_steps(model.prior.build().timesteps, options.prior_steps)
    decoder, n = _Decoder(model, options, context), options.n
    rows = np.repeat(np.arange(len(prompts)), n)
    ids = model.frozen.tokenizer.encode(prompts)[rows]
    seeds = make_seeds(prompts, first_samples(prompts, n), n, options.seed).reshape(-1, 3)

    def draw_part(indices: np.ndarray) -> np.ndarray:
        return model.loaded_prior.draw(
            ids[indices],
            seeds[indices],
            guidance=options.prior_guidance,
            steps=options.prior_steps,
            candidates=options.candidates,
            batch_size=options.batch_size,
        )

    @functools.cache
    def draw_embeddings() -> np.ndarray:
        return inference.split_over_hosts(draw_part, np.arange(len(rows)))

    def make_example(index: int, rng) -> dict[str, np.ndarray]:
        return {"embedding": draw_embeddings()[index], "text": ids[index], "seeds": seeds[index]}

    def paint(params, extra) -> UInt8[np.ndarray, "p n H W 3"]:
        draw_embeddings()  # by all hosts together, before threads ask for it
        images = decoder.decode(params, extra, range(len(rows)), make_example)
        return images.reshape(len(prompts), n, *images.shape[1:])

    return paint


class Reconstruction:
    """Decodes the embeddings of held-out images.

    `cosine`: mean cosine of the CLIP embeddings of an image and its reconstruction. `same`: share of the images from whose
    reconstruction the reader of the source reads the same, if the source has one.
    """

    def __init__(self, model: EvaluatedDecoder, options: ConfigDict, context):
        self._model, self._options, self._context = model, options, context
        self._source = context.source_of(options)
        self._source.check_reader(model.stage.size)
        self._decoder = _Decoder(model, options, context)
        self._records = functools.cache(lambda: model.records(self._source, context.asked_to_stop))

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the cosine of embeddings of originals and decoded images, and a sheet of both."""
        records = self._records()
        count = min(self._options.examples or len(records), len(records))
        images = self._decoder.decode(params, extra, range(count), self._make_example)
        clip = self._model.frozen.clip
        decoded = inference.split_over_hosts(lambda rows: clip.encode_image(images[rows]), np.arange(count))
        true = np.stack([records[index]["embedding"] for index in range(count)])
        true /= np.linalg.norm(true, axis=1, keepdims=True)
        metrics: dict[str, Any] = {"cosine": float(np.mean(np.sum(decoded * true, axis=1))), "images": count}
        preprocess = Preprocess(self._model.stage.size)
        if self._source.read is not None:
            originals = (preprocess(records[index]["image"]) for index in range(count))
            pairs = zip(originals, images, strict=True)
            metrics["same"] = float(np.mean([self._source.read(a) == self._source.read(b) for a, b in pairs]))
            metrics |= self._source.reader_metrics()
        shown = range(min(count, _MAX_SHOWN))
        rows = [[preprocess(records[index]["image"]) for index in shown], [images[index] for index in shown]]
        return metrics, {"reconstructions": image_grid(rows)}

    def _make_example(self, index: int, rng) -> dict[str, np.ndarray]:
        seeds = make_seeds([""], [index], 1, self._options.seed)[0, 0]
        embedding = self._records()[index]["embedding"]
        return {"embedding": embedding, "text": self._model.frozen.null_ids, "seeds": seeds}
