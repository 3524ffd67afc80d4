"""Fine-tunes a model on other data, and tells what it has gained and what it has forgotten.

    train-jax finetune hf:openai/clip-vit-base-patch32 --data=folder:photos --keep=tfds:cifar10 --workdir=runs/tuned
    train-jax finetune runs/clip-shapes --data=digits --keep=shapes/32 --workdir=runs/tuned --config.steps=500
    train-jax finetune runs/dalle-shapes --family=dalle --data=digits --keep=shapes/64@novel --workdir=runs/tuned

Trains by the recipe of the family, such as configs/clip/finetune.py, of which --config.NAME=VALUE sets any option: low-rank
adapters by --config.optim.lora, for example. Evaluates the new data and those to keep, before and after, and at points of
the line between (`train-jax blend`): one table, and a plot, line.png in the run directory. The point that gains most, among
those that lose at most --tolerance of each metric to keep, is written to best/ in the run directory.

Weights that must move far to know the new data leave the old behind, on the whole line: --replay=0.5 takes half of the
training examples from the data to keep.

Data with a split `test` are trained on `train` and evaluated on `test`; of other data a tenth is held out.
--keep=SOURCE@SPLIT names another split to evaluate, --config.evals.new.split=… and --config.data.split=… those of the new
data. CLIPs are compared by zero-shot accuracy (top1) if data have labels, else by retrieval (text_to_image/r1); VQGANs by
PSNR in dB; DALL-Es and priors by bits per code, of which fewer are better. The same command goes on.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

import train_jax
from train_jax import arguments, config_file, paths
from train_jax.command import exit_code
from train_jax.data import mixture, sources
from train_jax.data.errors import DataError
from train_jax.errors import ConfigError, UserError
from train_jax.evaluation import blend
from train_jax.evaluation.opened_model import open_model
from train_jax.evaluation.results import FILE, EvaluationFile


class _Comparison(NamedTuple):
    """How models of a family are compared.

    Attributes:
      recipe: shipped config.
      evaluator: type of the evaluator of data without labels.
      tolerance: default of the largest loss of a metric to keep.
      goal: "maximize" or "minimize" the metrics.
    """

    recipe: str
    evaluator: str
    tolerance: float
    goal: str = "maximize"


_FAMILIES = {
    "clip": _Comparison("clip/finetune", "retrieval", 0.02),
    "vqgan": _Comparison("vqgan/finetune", "reconstruction", 0.5),
    "prior": _Comparison("vqgan/prior_finetune", "likelihood", 0.05, "minimize"),
    "dalle": _Comparison("dalle/finetune", "likelihood", 0.05, "minimize"),
}
# Type of an evaluator -> the metric that is compared.
_METRICS = {"retrieval": "text_to_image/r1", "zero_shot": "top1", "reconstruction": "psnr", "likelihood": "bits_per_code"}


def main(argv: list[str]) -> int:
    """Runs `train-jax finetune`. Returns the exit code: 0, 2 for a user error, 130 or 143 if interrupted."""
    parser = argparse.ArgumentParser(
        "train-jax finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="weights to start from: a run, or anything that `load` opens")
    parser.add_argument("--family", choices=list(_FAMILIES), default="clip", help="family of the model (default: clip)")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="data to train on")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="SOURCE[@SPLIT]", help="data that must not be forgotten"
    )
    parser.add_argument(
        "--replay",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training examples that come from the split config.data.split of the data to keep (default: 0)",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory")
    parser.add_argument("--alpha", default="0:1:0.1", metavar="A,…", help="points of the line (default: 0:1:0.1)")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest loss of each metric to keep (default: 0.02 of a share, 0.5 dB, 0.05 bits per code)",
    )
    options, words = config_file.parse_arguments(parser, argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("train_jax").setLevel(logging.INFO)
    return exit_code("train-jax finetune", lambda: finetune(options, words), "the same command goes on")


def finetune(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains, compares and writes the chosen point."""
    model, alphas, family = options.model, blend.parse_alphas(options.alpha), _FAMILIES[options.family]
    tolerance = family.tolerance if options.tolerance is None else options.tolerance
    if not tolerance >= 0:
        raise UserError(f"--tolerance={tolerance:g}: it is the largest loss, 0 or more")
    if 0 not in alphas:
        raise UserError(f"--alpha={options.alpha}: let it contain 0, the weights before training")
    config, metrics = make_config(model, options.family, options.data, options.keep, overrides, options.replay)
    workdir = paths.run_directory(options.workdir)
    arguments.check_folder(str(workdir), "--workdir")
    train_jax.run(config, workdir)
    line = blend.Line(open_model(str(workdir)), model, ())
    points = blend.evaluate_points(line, alphas, EvaluationFile(workdir / FILE))
    blend.plot({alpha: {name: x[name] for name in metrics} for alpha, x in points.items()}, workdir / "line.png")
    alpha = blend.choose(points, metrics[0], dict.fromkeys(metrics[1:], tolerance), family.goal)
    best = workdir / "best"
    paths.remove(best)  # of an earlier call, perhaps with other options
    line.save(alpha, best)
    for metric in metrics:
        print(f"{metric}: {points[0][metric]:.4g} before, {points[alpha][metric]:.4g} at alpha {alpha:g}")
    print(f"alpha {alpha:g}: {best}; plot: {workdir / 'line.png'}")


def make_config(
    model: str, family: str, data: str, keep: Sequence[str], overrides: Sequence[str], replay: float = 0.0
) -> tuple[ConfigDict, list[str]]:
    """Makes the config of a fine-tuning. Returns it with the metrics of the new data and of each of those to keep.

    Args:
      keep: sources, or "SOURCE@SPLIT".
      overrides: arguments of the form `--config.NAME=VALUE`, of which those of `config.evals` change the comparison.
      replay: share in [0, 1) of the training examples that come from the sources to keep.

    Raises UserError for a share without data to keep, or out of its range; ConfigError for options that the recipe or the
    task does not have, and for evaluators that compare nothing; DataError for data that cannot be opened.
    """
    old = dict(map(_parse_source, keep))  # a source that is evaluated on several splits is replayed once
    if not 0 <= replay < 1 or (replay and not old):
        raise UserError(f"--replay={replay:g}: name a share from 0 to below 1, and data to take it from by --keep=SOURCE")
    config = config_file.load(_FAMILIES[family].recipe)
    config.pretrained, config.evals = model, ConfigDict()
    config.data.source = _mix(data, list(old), replay) if replay else data
    data_dir = config_file.override(config, overrides).data.get("data_dir") or None
    names = ["new", *(("old",) if len(keep) == 1 else (f"old{i}" for i in range(1, len(keep) + 1)))]
    for name, (source, split) in zip(names, [(data, ""), *map(_parse_source, keep)], strict=True):
        train, test, opened = _open_splits(source, split, data_dir)
        if name == "new" or (replay and train != "train"):  # what is held out of one is held out of all
            config.data.split = train
        is_labelled = family == "clip" and opened.label_names is not None
        type_ = "zero_shot" if is_labelled else _FAMILIES[family].evaluator
        config.evals[name] = ConfigDict({"type": type_, "source": source, "split": test})
    config = config_file.override(config, overrides)
    return config, [_find_metric(config, name) for name in names]


def _mix(data: str, old: Sequence[str], replay: float) -> str:
    """Returns a mixture of which `replay` comes from the old sources, in equal shares."""

    def scale(source, share):
        parts = mixture.parse(source)
        total = sum(weight for weight, _ in parts)
        return [f"{100 * share * weight / total:.4g} {name}" for weight, name in parts]

    parts = scale(data, 1 - replay) + [part for source in old for part in scale(source, replay / len(old))]
    return f" {mixture.SEPARATOR} ".join(parts)


def _parse_source(text: str) -> tuple[str, str]:
    """Parses `SOURCE@SPLIT`, or `SOURCE` to a source without a split, "". Folders may be named by "@", too."""
    match = re.fullmatch(r"(.+)@(\w+(?:\[[^\[\]]*\])?)", text)
    return match.groups() if match else (text, "")


def _open_splits(name: str, split: str, data_dir: str | Path | None) -> tuple[str, str, sources.Source]:
    """Returns the splits of a source for training and for evaluation, by default `split`, and the latter opened."""
    try:
        return "train", split or "test", sources.open_source(name, split or "test", data_dir=data_dir)
    except (DataError, ConfigError):
        if split:
            raise
        return "train[10%:]", "train[:10%]", sources.open_source(name, "train[:10%]", data_dir=data_dir)


def _find_metric(config: ConfigDict, name: str) -> str:
    """Returns the metric of an evaluator that is compared. Raises ConfigError for an evaluator that has none."""
    type_ = ((config.evals or {}).get(name) or {}).get("type")
    if type_ not in _METRICS:
        raise ConfigError(
            f"config.evals.{name} compares the weights before and after: it must be of the type {', '.join(_METRICS)}, not "
            f"{type_ or 'none'}"
        )
    return f"{name}/{_METRICS[type_]}"
