"""Evaluates runs and public weights, without training.

    train-jax evaluate runs/clip-shapes
    train-jax evaluate runs/clip-a runs/clip-b --evals=test,knn --data=digits --out=results.jsonl
    train-jax evaluate runs/vqgan-shapes --step=2000 --config.evals.test.most=500
    train-jax evaluate taming.ckpt --family=vqgan --evals=reconstruction --data=folder:PATH --split=all

MODEL is a run directory, or weights that `load` of a family opens. The evaluators are those of the run's config, or the
types of evaluators that --evals names; --data and --split replace the data of all of them, and --config.evals.NAME.OPTION
an option of one. Each result is a line of JSON in FILE (default: evaluations.jsonl in the run directory), written as soon as
it is there. The same command again evaluates what is missing: a result is that of the same weights, evaluator, options and
data. Pictures of evaluators are not written.
"""

import argparse
import functools
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from train_jax import agreement, arguments, config_file, distributed, paths, program_cache, sharding
from train_jax.command import exit_code
from train_jax.data import sources
from train_jax.errors import UserError
from train_jax.evaluation.evaluators import Evaluations
from train_jax.evaluation.opened_model import FAMILIES, OpenedModel, compute_fingerprint, open_model, place
from train_jax.evaluation.results import FILE, EvaluationFile, compute_data_id, result_options
from train_jax.paths import AnyPath
from train_jax.task import Task


def main(argv: list[str]) -> int:
    """Runs `train-jax evaluate`. Returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        "train-jax evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run directory, or public weights")
    parser.add_argument("--family", choices=FAMILIES, help="family of public weights, if several can open them")
    parser.add_argument("--evals", metavar="NAME,…", help="evaluators of the config, or types of evaluators (default: all)")
    parser.add_argument("--data", metavar="SOURCE", help="data source of the evaluators (default: those of the config)")
    parser.add_argument("--split", help="split of the source (default: those of the config)")
    parser.add_argument("--step", type=int, metavar="N", help="step of the checkpoint of a run (default: the newest)")
    parser.add_argument("--out", metavar="FILE", help=f"file of results (default: {FILE} in each run directory)")
    parser.add_argument("--again", action="store_true", help="evaluate anew what the file holds")
    options, words = config_file.parse_arguments(parser, argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    again = "the same command goes on after the last result"
    return exit_code("train-jax evaluate", lambda: _evaluate_all(options, words), again)


def _evaluate_all(options: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluates all models, after their configs and the file of results were checked."""
    arguments.check_outputs(out=options.out)
    distributed.initialize()
    evaluators = None if options.evals is None else arguments.listed(options.evals, "an evaluator", "--evals")
    choices = {"family": options.family, "step": options.step, "evaluators": evaluators, "overrides": overrides}
    models = [open_model(name, source=options.data, split=options.split, **choices) for name in options.models]
    paths_of_results = [_choose_file(model, options.out) for model in models]
    files = {path: EvaluationFile(path, again=options.again) for path in paths_of_results}
    program_cache.enable(jax.devices()[0].platform)
    for model, path in zip(models, paths_of_results, strict=True):
        for row, is_new in evaluate(model, files[path]):
            if jax.process_index() == 0:
                print(format_result(row, is_new), flush=True)


def _choose_file(model: OpenedModel, out: str | None) -> AnyPath:
    """Returns the path of the results of a model. Raises UserError if it is not a run and there is no `out`."""
    if out is not None:
        return paths.absolute(out)
    if model.directory is None:
        raise UserError(f"{model.name} is no run directory, which would hold the results: add --out=FILE")
    return model.directory / FILE


def evaluate(model: OpenedModel, file: EvaluationFile) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yields `(row, whether it is new)` of each evaluator of a model."""
    mesh = sharding.make_mesh(model.config.mesh)
    with jax.set_mesh(mesh):
        task = model.make_task()
        evaluations = Evaluations(model.config, task, mesh)
        yield from evaluate_weights(model, task, evaluations, mesh, *model.load_weights(task), file)


def evaluate_weights(
    model: OpenedModel,
    task: Task,
    evaluations: Evaluations,
    mesh: Mesh,
    params: Any,
    extra: Any,
    step: int | None,
    file: EvaluationFile,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yields `(row, whether it is new)` of each evaluator of a model, on weights of the host."""
    config = model.config
    model_id = compute_fingerprint(model, task, params, extra)
    params, extra = place(task, mesh, params, extra)
    for name, options in config.evals.items():
        row = {
            "model": model.name,
            "model_id": model_id,
            "family": model.family,
            "step": step,
            "evaluator": name,
            "options": result_options(options.to_dict(), config.get("compute", {}).get("dtype", "float32")),
            "source": options.source or config.data.source,
            "split": options.split,
            "data_id": compute_data_id(functools.partial(sources.from_config, config.data, options.source), options),
        }

        def run(name: str = name) -> Mapping[str, float]:
            metrics, _ = evaluations.run([name], params, extra)
            agreement.barrier()
            return {key.removeprefix(f"{name}/"): value for key, value in metrics.items()}

        yield file.evaluate(row, run)


def format_result(row: Mapping, is_new: bool) -> str:
    """Formats a result as one line."""
    step = "" if row["step"] is None else f" (step {row['step']})"
    values = ", ".join(f"{name} {value:.5g}" for name, value in row["metrics"].items())
    note = "" if is_new else " (already in the file)"
    return f"{row['model']}{step} {row['evaluator']} on {row['source']}:{row['split']}: {values}{note}"
