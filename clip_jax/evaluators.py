"""Evaluators of CLIP: zero-shot classification with prompt ensembling, retrieval in both directions, linear probe.

With `bootstrap` > 0, every accuracy and recall has a 95 % confidence interval, logged as `…/low` and `…/high`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from clip_jax.templates import fill_templates, read_templates
from train_jax import inference
from train_jax.config import EvaluatorOptions
from train_jax.data.images import Preprocess
from train_jax.data.images import normalize as normalize_pixels
from train_jax.data.sources import DataError, Source
from train_jax.data.subset import Subset, first
from train_jax.data.text import AnyTokenizer
from train_jax.errors import ConfigError
from train_jax.options import option

RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class AccuracyOptions(EvaluatorOptions):
    """Options of evaluators that report accuracies."""

    batch_size: int = option(256, "number of images per batch, over all devices and hosts", least=1)
    bootstrap: int = option(0, "number of bootstrap resamples for 95 % confidence intervals; 0: none", least=0)


@dataclasses.dataclass(frozen=True)
class ZeroShotOptions(AccuracyOptions):
    """Options of zero-shot classification."""

    templates: tuple[str, ...] = option(("a photo of a {}.",), "prompt templates; '@FILE': the lines of a file")
    per_class: bool = option(False, "whether to also report the accuracy of each class")


@dataclasses.dataclass(frozen=True)
class RetrievalOptions(AccuracyOptions):
    """Options of retrieval in both directions."""

    gallery: int = option(1000, "number of images, taken from the start of the split; 0: all", least=0)


@dataclasses.dataclass(frozen=True)
class LinearProbeOptions(AccuracyOptions):
    """Options of the linear probe."""

    train_split: str = option("train", "split of the source for training the probe")
    most: int = option(10_000, "maximum number of training images", least=1)
    # CLIP's value for ImageNet; the inverse of scikit-learn's C.
    strength: float = option(0.316, "strength of the L2 penalty", above=0)


EVALUATORS = {"zero_shot": ZeroShotOptions, "retrieval": RetrievalOptions, "linear_probe": LinearProbeOptions}


def make_factories(module: nn.Module, tokenizer: AnyTokenizer, preprocess: Preprocess) -> Mapping[str, Callable]:
    """Makes the evaluator factories of `train_jax.task.Task`: type -> `(options, context) -> evaluator`.

    Args:
      module: module with the methods `encode_image` and `encode_text` of `clip_jax.model.CLIP`.
    """
    encoders = Encoders(module, tokenizer, preprocess)
    return {name: functools.partial(evaluator, encoders) for name, evaluator in CLASSES.items()}


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Factory of functions that encode collections of images and texts."""

    module: nn.Module
    tokenizer: AnyTokenizer
    preprocess: Preprocess

    def make_image_encoder(self, context, batch_size: int) -> Callable:
        """Makes `encode(variables, records) -> float32 [n, dim]`, which runs on all hosts and compiles once."""

        def example(record, rng):
            return {"image": self.preprocess(record["image"])}

        return self._make_encoder(context, self._encode_image, example, batch_size)

    def make_text_encoder(self, context, batch_size: int) -> Callable:
        """Makes `encode(variables, texts) -> float32 [n, dim]`, which runs on all hosts and compiles once."""

        def example(text, rng):
            return {"text": self.tokenizer.encode([text])[0]}

        return self._make_encoder(context, self._encode_text, example, batch_size)

    def _encode_image(self, variables, batch):
        pixels = normalize_pixels(batch["image"], self.preprocess.mean, self.preprocess.std)
        return self.module.apply(variables, pixels, method="encode_image")

    def _encode_text(self, variables, batch):
        return self.module.apply(variables, batch["text"], method="encode_text")

    @staticmethod
    def _make_encoder(context, function: Callable, make_example: Callable, batch_size: int) -> Callable:
        """Makes `(variables, records) -> features`, which encodes padded batches and drops the padding."""
        jitted = context.jit(function)

        def encode(variables, records: Sequence) -> np.ndarray:
            batches = context.batches(records, make_example, batch_size)
            outputs = ((jitted(variables, batch), num_real) for batch, num_real in batches)
            return np.concatenate([rows[:num_real] for rows, num_real in inference.fetch_overlapped(outputs)])

        return encode


class ZeroShot:
    """Zero-shot top-1 and top-5 accuracy with prompt ensembling (arXiv 2103.00020, section 3.1)."""

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        source = context.source(options.source, options.split)
        if source.label_names is None:
            raise DataError(f"{source.name} has no classes: zero_shot needs a source with labels")
        try:
            self._templates = read_templates(options.templates)
        except ValueError as error:
            raise ConfigError(f"zero_shot: {error}") from error
        self._options, self._names = options, source.label_names
        self._records, self._labels = _select_labelled(source)
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        variables, names, options = {"params": params["clip"], **mutable_variables}, self._names, self._options
        texts = self._encode_texts(variables, fill_templates(names, self._templates))
        classes = texts.reshape(len(names), len(self._templates), -1).mean(axis=1)
        classes /= np.linalg.norm(classes, axis=1, keepdims=True)
        ranked = find_nearest(self._encode_images(variables, self._records), classes, 5)
        correct = ranked == self._labels[:, None]
        metrics = compute_accuracy_with_ci("top1", correct[:, 0], options.bootstrap) | {"images": len(correct)}
        if len(names) > 5:
            metrics |= compute_accuracy_with_ci("top5", correct.any(axis=1), options.bootstrap)
        if options.per_class:
            for label in np.unique(self._labels):
                metrics[f"top1/{names[label]}"] = float(correct[self._labels == label, 0].mean())
        return metrics, {}


class Retrieval:
    """Retrieval recall at 1, 5 and 10, from text to image and from image to text."""

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        self._source = context.source(options.source, options.split)
        self._gallery = first(self._source, options.gallery)
        self._records = [self._source.metadata(index) for index in range(len(self._gallery))]
        self._captions, self._owners = _collect_captions(self._records)
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        variables, resamples = {"params": params["clip"], **mutable_variables}, self._options.bootstrap
        images = self._encode_images(variables, self._gallery)
        texts = self._encode_texts(variables, self._captions)
        metrics = {"images": len(images), "captions": len(texts)}
        for name, queries, items, relevant in (
            ("text_to_image", texts, images, self._is_relevant),
            ("image_to_text", images, texts, lambda image, caption: self._is_relevant(caption, image)),
        ):
            ranks = find_first_relevant_rank(queries, items, relevant, max(RANKS))
            for k in RANKS:
                if k <= len(items):
                    metrics |= compute_accuracy_with_ci(f"{name}/r{k}", ranks < k, resamples)
        return metrics, {}

    def _is_relevant(self, caption: int, image: int) -> bool:
        if self._source.is_true is not None:
            return self._source.is_true(self._captions[caption], self._records[image])
        return image in self._owners[caption]


class LinearProbe:
    """Accuracy of a logistic regression on frozen image features (arXiv 2103.00020, section 3.2)."""

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        train, test = (context.source(options.source, split) for split in (options.train_split, options.split))
        self._train, self._train_labels = _select_labelled(train, options.most)
        self._test, self._test_labels = _select_labelled(test)
        if len(set(self._train_labels.tolist())) < 2:
            raise DataError(f"{train.name}: a linear probe needs images of at least two classes")
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        from sklearn.linear_model import LogisticRegression  # lazy import: takes as long as all others together

        variables = {"params": params["clip"], **mutable_variables}
        probe = LogisticRegression(C=1 / self._options.strength, max_iter=1000)  # L-BFGS, as in the paper
        probe.fit(self._encode_images(variables, self._train), self._train_labels)
        correct = probe.predict(self._encode_images(variables, self._test)) == self._test_labels
        counts = {"images": len(correct), "train": len(self._train_labels)}
        return compute_accuracy_with_ci("top1", correct, self._options.bootstrap) | counts, {}


# Type -> `(encoders, options, context) -> evaluator`; a type's options are in EVALUATORS.
CLASSES: dict[str, Callable] = {"zero_shot": ZeroShot, "retrieval": Retrieval, "linear_probe": LinearProbe}


def compute_accuracy_with_ci(name: str, correct: np.ndarray, resamples: int) -> dict[str, float]:
    """Computes an accuracy and, if `resamples` > 0, the 2.5 % and 97.5 % quantiles of its bootstrap distribution."""
    metrics = {name: float(correct.mean())}
    if resamples:
        # The number of correct answers in a resample of n answers is binomial.
        accuracies = np.random.default_rng(0).binomial(len(correct), correct.mean(), resamples) / len(correct)
        low, high = np.quantile(accuracies, (0.025, 0.975))
        metrics |= {f"{name}/low": float(low), f"{name}/high": float(high)}
    return metrics


def find_nearest(queries: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Finds the indices of each query's k nearest items, best first: int [queries, min(k, items)].

    Ties are broken by index, so that a collapsed model scores at chance level.
    """
    chunk = max(1, 2**24 // len(items))  # queries per chunk: 64 MiB of similarities
    indices = [
        np.argsort(-(queries[start : start + chunk] @ items.T), axis=1, kind="stable")[:, :k]
        for start in range(0, len(queries), chunk)
    ]
    return np.concatenate(indices)


def find_first_relevant_rank(
    queries: np.ndarray, items: np.ndarray, is_relevant: Callable[[int, int], bool], k: int
) -> np.ndarray:
    """Finds the rank of the first relevant item for each query: int [queries].

    Ranks count from 0. The rank is k if none of the k nearest items is relevant.
    """
    ranks = np.full(len(queries), k)
    for query, row in enumerate(find_nearest(queries, items, k)):
        hits = (rank for rank, item in enumerate(row) if is_relevant(query, int(item)))
        ranks[query] = next(hits, k)
    return ranks


def _select_labelled(source: Source, max_records: int | None = None) -> tuple[Subset, np.ndarray]:
    """Selects the labelled records of a source and returns the records and labels. Samples at most `max_records`."""
    indices = np.arange(len(source)) if max_records is None else np.random.default_rng(0).permutation(len(source))
    pairs = ((index, source.metadata(int(index)).get("label", -1)) for index in indices)
    labelled = sorted(itertools.islice((pair for pair in pairs if pair[1] >= 0), max_records))
    if not labelled:
        raise DataError(f"{source.name}: no record has a label")
    indices, labels = np.array(labelled).T
    return Subset(source, indices), labels


def _collect_captions(records: Sequence) -> tuple[list[str], list[set[int]]]:
    """Collects the distinct captions of records and, for each caption, the indices of its records."""
    owners: dict[str, set[int]] = {}
    for index, record in enumerate(records):
        for caption in record["captions"]:
            owners.setdefault(caption, set()).add(index)
    return list(owners), list(owners.values())
