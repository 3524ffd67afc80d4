"""Evaluators of CLIP: zero-shot classification with prompt ensembling, retrieval in both directions, and probes.

With `intervals`, every accuracy and recall has a 95 % confidence interval, logged as `…/low` and `…/high`: Wilson's for a
share of images or queries, which are taken as independent (the captions of one image are not quite).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from clip_jax.accuracy import (
    AccuracyOptions,
    compute_accuracy,
    compute_mean_per_class,
    find_first_relevant_rank,
    find_nearest,
)
from clip_jax.encoders import Encoders, select_labelled
from clip_jax.example import get_negatives
from clip_jax.hits import Hits, HitsOptions
from clip_jax.probes import KNN, FewShot, FewShotOptions, KNNOptions, LinearProbe, LinearProbeOptions
from clip_jax.templates import fill_templates, read_templates
from train_jax.data.images import Preprocess
from train_jax.data.sources import DataError, Source, get_field
from train_jax.data.subset import Subset, first
from train_jax.data.text import AnyTokenizer
from train_jax.errors import ConfigError
from train_jax.options import option

RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class ZeroShotOptions(AccuracyOptions):
    """Options of zero-shot classification."""

    templates: tuple[str, ...] = option(
        ("a photo of a {}.",), "prompt templates, or names of clip_jax.templates.LISTS; '@FILE': the lines of a file"
    )
    per_class: bool = option(False, "whether to also report the accuracy of each class")


@dataclasses.dataclass(frozen=True)
class RetrievalOptions(AccuracyOptions):
    """Options of retrieval in both directions."""

    gallery: int = option(1000, "number of images, taken from the start of the split; 0: all", least=0)
    field: str = option("captions", "field of the records that holds their texts: a list, or one text, such as name_en")


@dataclasses.dataclass(frozen=True)
class AttributesOptions(AccuracyOptions):
    """Options of the classification of combinations of attributes."""

    fields: tuple[str, ...] = option(("role", "gender", "tone"), "fields of a record that make up a combination")
    among: tuple[str, ...] = option(("train", "compositions"), "splits whose combinations are the candidates")

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(bool(self.fields), path, "fields", "at least one field of the records")
        self.require(bool(self.among), path, "among", "at least one split")


@dataclasses.dataclass(frozen=True)
class NegativesOptions(AccuracyOptions):
    """Options of the choice between captions and false captions."""

    captions: int = option(1, "number of captions of each record, the first ones; 0: all", least=0)


EVALUATORS = {
    "zero_shot": ZeroShotOptions,
    "retrieval": RetrievalOptions,
    "attributes": AttributesOptions,
    "negatives": NegativesOptions,
    "hits": HitsOptions,
    "linear_probe": LinearProbeOptions,
    "few_shot": FewShotOptions,
    "knn": KNNOptions,
}


def make_factories(module: nn.Module, tokenizer: AnyTokenizer, preprocess: Preprocess) -> Mapping[str, Callable]:
    """Makes the evaluator factories of `train_jax.task.Task`: type -> `(options, context) -> evaluator`.

    Args:
      module: module with the methods `encode_image` and `encode_text` of `clip_jax.model.CLIP`.
    """
    encoders = Encoders(module, tokenizer, preprocess)
    return {name: functools.partial(evaluator, encoders) for name, evaluator in CLASSES.items()}


class ZeroShot:
    """Zero-shot top-1, top-5 and mean-per-class accuracy with prompt ensembling (arXiv 2103.00020, section 3.1)."""

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        source = context.source_of(options)
        if source.label_names is None:
            raise DataError(f"{source.name} has no classes: zero_shot needs a source with labels")
        try:
            self._templates = read_templates(options.templates)
        except ValueError as error:
            raise ConfigError(f"zero_shot: {error}") from error
        self._options, self._names = options, source.label_names
        self._records, self._labels = select_labelled(source)
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns `top1`, `mean_per_class`, and of more than five classes `top5`, as fractions; no pictures."""
        variables, names, options = {"params": params["clip"], **mutable_variables}, self._names, self._options
        texts = self._encode_texts(variables, fill_templates(names, self._templates))
        classes = texts.reshape(len(names), len(self._templates), -1).mean(axis=1)
        classes /= np.linalg.norm(classes, axis=1, keepdims=True)
        ranked = find_nearest(self._encode_images(variables, self._records), classes, 5)
        correct = ranked == self._labels[:, None]
        metrics = compute_accuracy("top1", correct[:, 0], options.intervals) | {"images": len(correct)}
        metrics |= compute_mean_per_class(correct[:, 0], self._labels, options.intervals)
        if len(names) > 5:
            metrics |= compute_accuracy("top5", correct.any(axis=1), options.intervals)
        if options.per_class:
            for label in np.unique(self._labels):
                metrics[f"top1/{names[label]}"] = float(correct[self._labels == label, 0].mean())
        return metrics, {}


class Retrieval:
    """Retrieval recall at 1, 5 and 10, from text to image and from image to text.

    An image is found if a text that is true of it is among the nearest k, and a text if it is true of one of the nearest k
    images. Captions are true where the source says so (`Source.is_true`); if it does not, and of another `field`, a text is
    true of the images whose records have it. Equal texts are one query and one item.
    """

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        self._source = context.source_of(options)
        self._gallery = first(self._source, options.gallery)
        self._records = [self._source.metadata(index) for index in range(len(self._gallery))]
        self._captions, self._owners = _collect_captions(self._source, self._records, options.field)
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns recalls as fractions, with their intervals; no pictures."""
        variables = {"params": params["clip"], **mutable_variables}
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
                    metrics |= compute_accuracy(f"{name}/r{k}", ranks < k, self._options.intervals)
        return metrics, {}

    def _is_relevant(self, caption: int, image: int) -> bool:
        if self._source.is_true is not None and self._options.field == "captions":
            return self._source.is_true(self._captions[caption], self._records[image])
        return image in self._owners[caption]


class Attributes:
    """Classification of combinations of attributes, each described by a caption (compositional zero-shot learning).

    An image's combination is that of the nearest caption, among the first captions of all combinations that occur in some
    splits. Reports `all`, the share of images whose attributes are all right, and the share for each attribute. Records
    where an attribute is empty are left out. Equal images have all of their combinations: the one with the most right
    attributes counts.
    """

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        source = context.source_of(options)
        combinations = [_combine(source, index, options.fields) for index in range(len(source))]
        complete = [index for index, values in enumerate(combinations) if values is not None]
        if not complete:
            raise DataError(f"{source.name}: no record has all of {', '.join(options.fields)}")
        self._records = Subset(source, complete)
        images = [source[index]["image"] for index in complete]
        by_image: dict[bytes, list[tuple]] = {}
        for image, index in zip(images, complete, strict=True):
            by_image.setdefault(image, []).append(combinations[index])
        self._truths = [np.array(by_image[image]) for image in images]
        captions: dict[tuple[str, ...], str] = {}
        for split in options.among:
            others = context.source(options.source, split)
            for index in range(len(others)):
                values = _combine(others, index, options.fields)
                if values is not None:
                    captions.setdefault(values, others.metadata(index)["captions"][0])
        if missing := {combinations[index] for index in complete} - set(captions):
            raise DataError(
                f"{source.name}: {len(missing)} combination(s), such as {', '.join(min(missing))}, are not in among = "
                f"{', '.join(options.among)}: add the split {options.split}"
            )
        self._candidates, self._captions = np.array(list(captions)), list(captions.values())
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns accuracies as fractions, of the combination and of each field; no pictures."""
        variables, options = {"params": params["clip"], **mutable_variables}, self._options
        texts = self._encode_texts(variables, self._captions)
        nearest = find_nearest(self._encode_images(variables, self._records), texts, 1)[:, 0]
        correct = np.array([_mark(self._candidates[i], truths) for i, truths in zip(nearest, self._truths, strict=True)])
        metrics = {"images": len(correct), "candidates": len(texts)}
        metrics |= compute_accuracy("all", correct.all(axis=1), options.intervals)
        for column, field in enumerate(options.fields):
            metrics |= compute_accuracy(field, correct[:, column], options.intervals)
        return metrics, {}


class Negatives:
    """Choice between an image's caption and a false one like it, its negative (as in arXiv 2306.14610).

    Reports `accuracy`: the share of captions that are nearer to their image than their negative is, which chance makes a
    half. Captions without a negative, or with one of the same tokens, are left out.
    """

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        source = context.source_of(options)
        self._captions, self._negatives, rows, indices = [], [], [], []
        for index in range(len(source)):
            record = source.metadata(index)
            pairs = list(zip(record["captions"], get_negatives(record), strict=True))[: options.captions or None]
            pairs = [pair for pair in pairs if pair[1] and encoders.tells_apart(*pair)]
            if pairs:
                rows += [len(indices)] * len(pairs)
                indices.append(index)
                self._captions += [caption for caption, _ in pairs]
                self._negatives += [negative for _, negative in pairs]
        if not indices:
            raise DataError(f"{source.name}: no caption has a negative")
        self._records, self._rows = Subset(source, indices), np.array(rows)
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns accuracies as fractions; no pictures."""
        variables = {"params": params["clip"], **mutable_variables}
        images = self._encode_images(variables, self._records)[self._rows]
        texts = list(dict.fromkeys(self._captions + self._negatives))
        positions = {text: position for position, text in enumerate(texts)}
        embeddings = self._encode_texts(variables, texts)
        true, false = (embeddings[[positions[text] for text in group]] for group in (self._captions, self._negatives))
        nearer = np.sum(images * true, axis=1) > np.sum(images * false, axis=1)
        return {"captions": len(nearer)} | compute_accuracy("accuracy", nearer, self._options.intervals), {}


def _combine(source: Source, index: int, fields: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the attributes of a record, or None if one is empty. Raises DataError for a missing field."""
    record = source.metadata(index)
    values = [get_field(source, record, field, "attributes") for field in fields]
    return None if any(value in ("", -1, None) for value in values) else tuple(map(str, values))


def _mark(answer: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Returns which attributes of an answer are right, by the truth that has most of them."""
    marks = truths == answer
    return marks[np.argmax(marks.sum(axis=1))]


# Type -> `(encoders, options, context) -> evaluator`; a type's options are in EVALUATORS.
CLASSES: dict[str, Callable] = {
    "zero_shot": ZeroShot,
    "retrieval": Retrieval,
    "attributes": Attributes,
    "negatives": Negatives,
    "hits": Hits,
    "linear_probe": LinearProbe,
    "few_shot": FewShot,
    "knn": KNN,
}


def _collect_captions(source: Source, records: Sequence, field: str) -> tuple[list[str], list[set[int]]]:
    """Collects the distinct captions of records in a field and, for each caption, the indices of its records.

    Empty texts are left out. Raises DataError for a missing field.
    """
    owners: dict[str, set[int]] = {}
    for index, record in enumerate(records):
        texts = get_field(source, record, field, "retrieval")
        for caption in filter(None, [texts] if isinstance(texts, str) else texts):
            owners.setdefault(caption, set()).add(index)
    if not owners:
        raise DataError(f"{source.name}: the field {field!r} is empty in all records")
    return list(owners), list(owners.values())
