"""The evaluator of images sampled from texts: their accuracy, checked by the image reader of a data source. For DALL-E."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from train_jax import inference
from train_jax.config import EvaluatorOptions
from train_jax.data.sources import DataError, Source
from train_jax.options import option
from train_jax.pictures import image_grid
from vqgan_jax.stage2 import evaluators, rerank
from vqgan_jax.stage2.evaluators import EvaluatedModel, Sampler, SamplingOptions, check_sampling


@dataclasses.dataclass(frozen=True)
class PromptOptions(EvaluatorOptions):
    """Options of the accuracy of images of prompts, for any model."""

    about: str = option(
        "labels",
        "source of the prompts: labels or fields of records in the template, first captions, or (pairs) first captions of "
        "unlabelled records",
        choices=("labels", "fields", "captions", "pairs"),
    )
    template: str = option("a {}", "prompt template with {} for the label, or such as '{concept}, {style}' for fields")
    prompts: int = option(256, "number of prompts", least=1)
    n: int = option(1, "number of images per prompt, ranked by clip", least=1)
    clip: str = option("", "path of the CLIP that ranks the images (see clip_jax.load); empty: none")

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        super().check(path)
        self.require(self.n == 1 or bool(self.clip), path, "n", "1 without a clip that ranks the images")


@dataclasses.dataclass(frozen=True)
class DrawingOptions(PromptOptions, SamplingOptions):
    """Options of the accuracy of images that DALL-E samples."""


EVALUATORS = {**evaluators.EVALUATORS, "drawing": DrawingOptions}


def make_factories(stage: EvaluatedModel) -> Mapping[str, Callable]:
    """Makes the evaluator factories: type -> `(options, context) -> evaluator`."""

    def make_painter(options: ConfigDict, context, prompts: list[str]) -> Callable:
        check_sampling(options, stage)
        sampler = Sampler(stage, options, context, prompts)
        return lambda params, extra: sampler.decode_images(sampler.sample_codes(params))

    return {"drawing": functools.partial(Drawings, make_painter, stage.image_size)}


class Drawings:
    """Fraction of prompts whose image is correct, judged by the image reader of the source.

    Also the fraction for each part of a prompt that the reader tells apart, such as `colours`, among the prompts that have
    it. With `clip`, all of them also for the best of n images by CLIP score, as `…_best_of_n`.

    Args:
      make_painter: function `(options, context, prompts) -> paint`, where `paint(params, extra)` returns `options.n` images
        of each prompt, uint8 [prompts, n, size, size, 3], on every host.
      size: side of these images in pixels.
      options: `PromptOptions`, and those of the painter.
    """

    def __init__(self, make_painter: Callable, size: int, options: ConfigDict, context):
        self._source = context.source_of(options)
        if self._source.judge is None:
            raise DataError(f"{self._source.name} has no image reader: the evaluator 'drawing' needs one")
        self._prompts, self._n = collect_prompts(self._source, options), options.n
        self._source.check_reader(size)
        _check_prompts(self._source, self._prompts, size)
        self._paint = make_painter(options, context, self._prompts)
        self._clip = rerank.open_reranker(options.clip, "float32") if options.clip else None

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the fractions of correct images, and a sheet of the first prompts."""
        images = self._paint(params, extra)
        verdicts = [[self._source.judge(x, prompt) for x in row] for prompt, row in zip(self._prompts, images, strict=True)]
        metrics = average_parts([row[0] for row in verdicts]) | {"prompts": len(self._prompts)}
        metrics |= self._source.reader_metrics()
        if self._clip is not None:
            scores = inference.split_over_hosts(
                lambda rows: rerank.clip_scores(self._clip, [self._prompts[row] for row in rows], images[rows]),
                np.arange(len(images)),
            )
            best = average_parts([row[index] for row, index in zip(verdicts, np.argmax(scores, axis=1), strict=True)])
            metrics |= {f"{part}_best_of_{self._n}": share for part, share in best.items()}
        rows = [list(images[i : i + 16, 0]) for i in range(0, min(len(images), 64), 16)]
        return metrics, {"drawings": image_grid(rows)}


def _check_prompts(source: Source, prompts: Sequence[str], size: int) -> None:
    """Raises DataError for a prompt that the reader of the source does not understand, before images are sampled."""
    for prompt in prompts:
        try:
            source.judge(np.full((size, size, 3), 255, np.uint8), prompt)
        except ValueError as error:
            raise DataError(f"{source.name}: {error}. Prompts follow from the options about and template") from error


def average_parts(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """Returns the share of images that show each part, among the prompts that have it."""
    parts = dict.fromkeys(part for verdict in verdicts for part in verdict)
    return {part: float(np.mean([verdict[part] for verdict in verdicts if part in verdict])) for part in parts}


def collect_prompts(source: Source, options: ConfigDict) -> list[str]:
    """Collects up to `options.prompts` prompts about the records of a source, in the order of the records."""
    return [text for _, text in collect_indexed_prompts(source, options)]


def collect_indexed_prompts(source: Source, options: ConfigDict) -> list[tuple[int, str]]:
    """Collects prompts as `collect_prompts`, each with the index of its record."""
    prompts = []
    for index in range(len(source)):
        record = source.metadata(index)
        label = record.get("label", -1)
        if options.about == "labels" and label >= 0:
            prompts.append((index, fill_template(options.template, source.label_names[label])))
        elif options.about == "fields":
            prompts.append((index, _fill_fields(options.template, record, source.name)))
        elif options.about == "captions" or (options.about == "pairs" and label < 0):
            prompts.append((index, record["captions"][0]))
        if len(prompts) == options.prompts:
            break
    if not prompts:
        raise DataError(f"{source.name} has no records for prompts: about = {options.about!r}")
    return prompts


def _fill_fields(template: str, record: Mapping, source: str) -> str:
    """Fills a template with fields of a record. Raises DataError for a field that the record lacks."""
    try:
        return template.format_map(record)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        fields = ", ".join(name for name, value in record.items() if isinstance(value, str))
        raise DataError(f"{source}: template {template!r} must name fields of a record, such as {fields}") from error


def fill_template(template: str, name: str) -> str:
    """Fills a template with a label. "a {}" becomes "an {}" before a vowel."""
    if name[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return template.format(name)
