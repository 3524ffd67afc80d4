"""Evaluation of many CLIPs on many data sets without training: `clip-jax evaluate`.

The evaluators are those of training (`clip_jax.evaluators`). Each result is a JSON line (`train_jax.evaluation.results`);
all results are one table at the end. The features of an image are computed once for all evaluators of a model.
"""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from clip_jax import clip as clip_lib
from clip_jax.encoders import Encoders
from clip_jax.evaluators import CLASSES, EVALUATORS
from clip_jax.feature_cache import FeatureCache
from train_jax import sharding
from train_jax.config import DataOptions
from train_jax.errors import ConfigError
from train_jax.evaluation.evaluators import Context
from train_jax.evaluation.results import EvaluationFile, compute_data_id, result_options

# What clip-jax evaluate measures unless options say otherwise: all images, intervals, a swept linear probe.
_OPTIONS = {
    "zero_shot": {"intervals": True},
    "retrieval": {"intervals": True, "gallery": 0},
    "linear_probe": {"intervals": True, "most": 0, "strength": 0.0},
    "few_shot": {"intervals": True},
    "knn": {"intervals": True, "most": 0},
}
# Metrics of a task that the table shows; few-shot: the accuracy of each number of shots.
_HEADLINES = {
    "zero_shot": ("top1", "mean_per_class"),
    "retrieval": ("text_to_image/r1", "image_to_text/r1"),
    "linear_probe": ("top1",),
    "knn": ("top1",),
}
TASKS = tuple(_OPTIONS)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What to measure.

    Attributes:
      data: names of data sources.
      tasks: evaluator types; (): zero_shot for data with labels, else retrieval.
      options: options of the evaluators that have them, such as `split` and `templates`.
      data_options: further options of the data (`train_jax.config.DataOptions`), such as `max_broken_eval`.
    """

    data: Sequence[str]
    tasks: Sequence[str] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make_context(self) -> Context:
        """Makes the context of all evaluators: all devices of this host, and the options of the data."""
        data = DataOptions.defaults()
        data.update({"source": self.data[0], **self.data_options})
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices())
        return Context(mesh, ConfigDict({"data": data}))

    def list_evaluations(self, context: Context) -> list[tuple[str, ConfigDict]]:
        """Lists `(evaluator type, options)` of every task on every data source.

        Raises DataError for data that cannot be opened, ConfigError for options out of range.
        """
        return [
            (task, self._complete(task, name))
            for name in self.data
            for task in self.tasks or (self._default_task(context, name),)
        ]

    def _default_task(self, context: Context, name: str) -> str:
        split = self.options.get("split", "test")
        return "zero_shot" if context.source(name, split).label_names else "retrieval"

    def _complete(self, task: str, source: str) -> ConfigDict:
        options = EVALUATORS[task].defaults()
        stated = {name: value for name, value in self.options.items() if name in options}
        options.update({**_OPTIONS[task], **stated, "source": source})
        try:
            EVALUATORS[task].parse(options, "")
        except ConfigError as error:
            raise ConfigError(f"{task}: {str(error).removeprefix('config.')}") from error
        return options


def evaluate(
    models: Sequence[str],
    benchmark: Benchmark,
    file: EvaluationFile,
    *,
    dtype: str | None = "auto",
    features: Path | None = None,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yields `(row, whether it is new)` for every model, data source and task.

    Args:
      models: paths of models, as in `clip_jax.load`.
      file: file of results; the rows that it holds are not computed again.
      dtype: precision of the models, as in `clip_jax.load`.
      features: folder for image features, which other commands with the same model and data read; None: not on disk.

    Mistakes in data and options are errors before the first evaluation.
    """
    context = benchmark.make_context()
    evaluations = benchmark.list_evaluations(context)
    data_ids = [compute_data_id(functools.partial(context.source, options.source), options) for _, options in evaluations]
    with jax.set_mesh(context.mesh):
        for name in models:
            context = dataclasses.replace(context, _compiled={})  # programs hold the features of their model
            clip = clip_lib.load(name, dtype=dtype)
            cache = FeatureCache(f"{clip.dtype}-{clip.fingerprint}", features)
            encoders = Encoders(clip.module, clip.tokenizer, clip.preprocess, cache)
            variables = dict(jax.device_put(clip.variables, sharding.replicated(context.mesh)))
            params = {"clip": variables.pop("params")}
            evaluators = [CLASSES[task](encoders, options, context) for task, options in evaluations]
            for (task, options), evaluator, data_id in zip(evaluations, evaluators, data_ids, strict=True):
                row = {
                    "model": name,
                    "model_id": clip.fingerprint,
                    "family": "clip",
                    "step": None,
                    "evaluator": task,
                    "options": result_options({"type": task, **options}, clip.dtype),
                    "source": options.source,
                    "split": options.split,
                    "data_id": data_id,
                }

                def run(evaluator: Callable = evaluator, params=params, variables=variables) -> Mapping[str, Any]:
                    return evaluator(params, variables)[0]

                yield file.evaluate(row, run)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def format_table(rows: Sequence[Mapping[str, Any]], form: str = "text") -> str:
    """Formats results as a table: one row per model, one column per data source, task and headline metric.

    Args:
      form: "text" or "md": percentages with their 95 % intervals; "csv": all metrics as fractions.
    """
    columns: dict[tuple[str, ...], None] = {}
    cells: dict[str, dict[tuple[str, ...], str]] = {}
    for row in rows:
        metrics = row["metrics"]
        for name in metrics if form == "csv" else _list_headlines(row):
            column = (f"{row['source']}:{row['split']}", row["evaluator"], name)
            columns.setdefault(column)
            cells.setdefault(row["model"], {})[column] = (
                repr(metrics[name]) if form == "csv" else _format_percentage(metrics, name)
            )
    lines = [[model, *(values.get(column, "") for column in columns)] for model, values in cells.items()]
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["model", *map(" ".join, columns)], *lines])
        return text.getvalue().rstrip("\n")
    if form == "md":
        header = [["model", *map(" ".join, columns)], ["---", *("---:" for _ in columns)]]
        return "\n".join(f"| {' | '.join(line)} |" for line in header + lines)
    header = [["model" if part == 2 else "", *(column[part] for column in columns)] for part in range(3)]
    widths = [max(map(len, cell)) for cell in zip(*header, *lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(x.rjust(n) for x, n in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in header + lines
    )


def _list_headlines(row: Mapping[str, Any]) -> list[str]:
    """Lists the metrics of a result that a table shows."""
    names = _HEADLINES.get(row["evaluator"]) or [name for name in row["metrics"] if name.endswith("/top1")]
    return [name for name in names if name in row["metrics"]]


def _format_percentage(metrics: Mapping[str, float], name: str) -> str:
    text = f"{100 * metrics[name]:.1f}"
    if f"{name}/low" in metrics:
        text += f" [{100 * metrics[f'{name}/low']:.1f}, {100 * metrics[f'{name}/high']:.1f}]"
    return text
