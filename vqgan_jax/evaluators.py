"""Evaluators of a VQGAN's reconstructions: PSNR, SSIM, perceptual distance, codebook usage, oracle readings, FID."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from train_jax import inference
from train_jax.config import EvaluatorOptions
from train_jax.data.images import Preprocess, normalize
from train_jax.data.sources import DataError
from train_jax.data.subset import first
from train_jax.errors import ConfigError
from train_jax.options import option
from train_jax.pictures import image_grid
from vqgan_jax import averaging
from vqgan_jax.features import open_features, take_images
from vqgan_jax.metrics import WINDOW, psnr, ssim


@dataclasses.dataclass(frozen=True)
class ReconstructionOptions(EvaluatorOptions):
    """Options of the evaluator of reconstruction errors."""

    most: int = option(0, "maximum number of images, from the start of the split; 0: all", least=0)
    shown: int = option(8, "number of images in the grid of reconstructions", least=0)


@dataclasses.dataclass(frozen=True)
class ReadingOptions(EvaluatorOptions):
    """Options of the evaluator that compares readings of images by the source's reader, such as the oracle of shapes."""

    most: int = option(500, "maximum number of images, from the start of the split; 0: all", least=0)


@dataclasses.dataclass(frozen=True)
class DistributionOptions(EvaluatorOptions):
    """Options of the evaluator of distribution distances, such as FID, between originals and reconstructions."""

    most: int = option(0, "maximum number of images, from the start of the split; 0: all", least=0)
    features: str = option("", "feature network: a CLIP, or inception:FILE; see vqgan_jax.features")


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """The autoencoder to evaluate.

    Attributes:
      distance: perceptual distance of the task (`vqgan_jax.perceptual.Distance`), or None.
    """

    module: nn.Module
    preprocess: Preprocess
    distance: Any

    def iterate_reconstructions(self, options: ConfigDict, context, records, params, extra):
        """Yields `(originals, (metrics per image, codes, reconstructions), number of rows without padding)` per batch."""
        program = context.jit(self._reconstruct)
        batches = context.batches(records, self._make_example, options.batch_size)
        return inference.fetch_overlapped(
            (context.replicate(batch["image"]), program(params, extra, batch), real) for batch, real in batches
        )

    def _make_example(self, record, rng):
        return {"image": self.preprocess(record["image"])}

    def _reconstruct(self, params, extra, batch):
        variables = averaging.inference_variables(params, extra)
        x = normalize(batch["image"], self.preprocess.mean, self.preprocess.std)
        codes = self.module.apply(variables, x, method="encode")
        decoded = jnp.clip(self.module.apply(variables, codes, method="decode"), -1, 1)
        a, b = (decoded + 1) / 2, (x + 1) / 2
        values = {"psnr": psnr(a, b), "l1": jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))}
        if self.preprocess.size >= WINDOW:  # smaller ones have other evaluators
            values["ssim"] = ssim(a, b)
        if self.distance is not None:
            per_image = jax.vmap(lambda a, b: self.distance.function(extra["perceptual"], a[None], b[None]))
            values["perceptual"] = per_image(decoded, x)
        return values, codes, jnp.round(255 * a).astype(jnp.uint8)


class Reconstruction:
    """Evaluates reconstructions by PSNR, SSIM, L1 and perceptual distance, and the usage of the codebook."""

    def __init__(self, model: EvaluatedModel, options: ConfigDict, context):
        size = model.preprocess.size
        if size < WINDOW:
            raise ConfigError(
                f"the evaluator 'reconstruction' measures SSIM, which needs images of at least {WINDOW} x {WINDOW} pixels; "
                f"those of this model have {size} x {size}. Leave it out (--config.evals.NAME=none, or other --evals)"
            )
        self._model, self._options, self._context = model, options, context
        self._records = first(context.source_of(options), options.most)

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns means over images, and a sheet of originals and reconstructions."""
        records, options = self._records, self._options
        sums, counts, examples = {}, np.zeros(self._model.module.quantizer.size), []
        batches = self._model.iterate_reconstructions(options, self._context, records, params, extra)
        for originals, (values, codes, reconstructions_uint8), real in batches:
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(np.sum(value[:real], dtype=np.float64))
            counts += np.bincount(codes[:real].ravel(), minlength=len(counts))
            remaining = min(real, options.shown - len(examples))
            examples += zip(originals[:remaining], reconstructions_uint8[:remaining], strict=True)
        metrics = {name: value / len(records) for name, value in sums.items()}
        metrics |= {"usage": float(np.mean(counts > 0)), "perplexity": perplexity(counts), "images": len(records)}
        grid = image_grid([[a for a, _ in examples], [b for _, b in examples]]) if examples else None
        return metrics, {} if grid is None else {"reconstructions": grid}


class Reading:
    """Evaluates the fraction of images for which the source's reader reads the same from image and reconstruction."""

    def __init__(self, model: EvaluatedModel, options: ConfigDict, context):
        self._model, self._options, self._context = model, options, context
        source = context.source_of(options)
        if source.read is None:
            raise DataError(f"{source.name} has no reader, which the evaluator 'reading' needs (shapes has one)")
        source.check_reader(model.preprocess.size)
        self._read, self._records = source.read, first(source, options.most)
        self._accuracy = source.reader_metrics()

    def __call__(self, params, extra) -> tuple[dict[str, float], dict]:
        """Returns the fraction; no pictures."""
        same = []
        batches = self._model.iterate_reconstructions(self._options, self._context, self._records, params, extra)
        for originals, (_, _, reconstructions_uint8), real in batches:
            pairs = zip(originals[:real], reconstructions_uint8[:real], strict=True)
            same += [self._read(a) == self._read(b) for a, b in pairs]
        return {"same": float(np.mean(same)), "images": len(same), **self._accuracy}, {}


class Distribution:
    """Evaluates distances between the feature distributions of reconstructions and originals, such as FID."""

    def __init__(self, model: EvaluatedModel, options: ConfigDict, context):
        self._model, self._options, self._context = model, options, context
        self._features = open_features(options.features)
        self._records = take_images(context.source_of(options), options.most)

    def __call__(self, params, extra) -> tuple[dict[str, float], dict]:
        """Returns distances; no pictures."""
        reconstructions, references = [], []  # features only, since all images may not fit into memory
        batches = self._model.iterate_reconstructions(self._options, self._context, self._records, params, extra)
        for originals, (_, _, reconstructions_uint8), real in batches:
            reconstructions.append(self._features.extract(reconstructions_uint8)[:real])
            references.append(self._features.extract(originals)[:real])
        metrics = self._features.compare(np.concatenate(reconstructions), np.concatenate(references))
        return metrics | {"images": len(self._records)}, {}


def perplexity(counts: np.ndarray) -> float:
    """Computes the perplexity of code counts: the exponential of their entropy, between 1 and the number of codes."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


EVALUATORS = {"reconstruction": ReconstructionOptions, "reading": ReadingOptions, "distribution": DistributionOptions}
# Evaluator type -> `(autoencoder, options, context) -> evaluator`; EVALUATORS has the options of each type.
CLASSES: dict[str, Callable] = {"reconstruction": Reconstruction, "reading": Reading, "distribution": Distribution}


def make_factories(module: nn.Module, preprocess: Preprocess, distance) -> Mapping[str, Callable]:
    """Returns the evaluator factories `(options, context) -> evaluator` for `train_jax.task.Task`, by type."""
    model = EvaluatedModel(module, preprocess, distance)
    return {name: functools.partial(evaluator, model) for name, evaluator in CLASSES.items()}
