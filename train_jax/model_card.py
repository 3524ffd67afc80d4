"""Model cards: the README.md beside weights, with the front matter that the Hugging Face Hub reads.

    KIND = Kind("A CLIP, …", ("clip",), pipeline="zero-shot-image-classification", code=LOADING_CODE)
    write(folder, make(KIND, clip.name, licence="apache-2.0"))

A card tells how the weights are loaded and, if they are those of a run, what its directory knows of them: configuration,
data and their licences, results of evaluators, commit and versions. What is not known is left out.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import resume, run_directory
from train_jax.data import builders
from train_jax.errors import ConfigError
from train_jax.options import flatten
from train_jax.runs.read import Run, read_run
from train_jax.weights import known_models

FILE = "README.md"
FOLDER = "path/to/this/folder"  # what the code of a card loads, until `address` replaces it
LIBRARY = "multimodal-jax"
_COUNTS = ("images", "captions", "candidates")  # of what was evaluated: no measure of the model
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclasses.dataclass(frozen=True)
class Kind:
    """Kind of model, as its cards describe it. A task may define one as `CARD`.

    Attributes:
      description: what the model is, as the beginning of a sentence, such as "A CLIP, which embeds images and texts".
      tags: tags of the hub, besides "jax".
      pipeline: the hub's name of the task that the model solves; empty if the hub has none.
      code: Python that loads a run directory at FOLDER and uses the model.
    """

    description: str
    tags: tuple[str, ...] = ()
    pipeline: str = ""
    code: str = ""


def make(
    kind: Kind, source: str, *, code: Sequence[str] = (), library: str = LIBRARY, licence: str | None = None
) -> str:
    """Makes the text of a card.

    Args:
      source: name of the weights, as loaded models have it; that of a run's weights tells where its directory is.
      code: pieces of Python, each of which loads the model from FOLDER; empty: that of `kind`.
      library: the hub's name of the library that opens the files.
      licence: licence of the weights, by the hub's name, such as "apache-2.0"; None: not stated.

    Raises ConfigError for a licence that cannot be a name of the hub.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ConfigError(f"licence {licence!r}: write a name of the hub in lower case, such as apache-2.0 or mit")
    run, step = _read_source(source)
    results = [] if run is None else list_results(run, step)
    metrics = {row["metric"].rpartition("/")[2] for row in results}.difference(_COUNTS)
    front = huggingface_hub.ModelCardData(
        license=licence,
        library_name=library,
        pipeline_tag=kind.pipeline or None,
        tags=["jax", *kind.tags],
        metrics=sorted(metrics) or None,
        base_model=None if run is None else _find_base(run.config),
    )
    title = kind.tags[0] if run is None else run.name
    parts = [f"---\n{front.to_yaml()}\n---\n", f"# {title}\n", f"{kind.description}{_tell_training(run, step)}.\n"]
    if pieces := code or [kind.code] * bool(kind.code):
        parts += ["## Use\n", *(f"```python\n{piece}```\n" for piece in pieces)]
    if run is not None:
        parts += [*_format_data(run.config), *_format_results(results), *_format_config(run.config)]
        parts += _format_environment(_find_start(run, step))
    return "\n".join(parts)


def write(folder: Path, card: str) -> None:
    """Writes a card into a folder."""
    (folder / FILE).write_text(card, "utf-8")


def address(card: str, repository: str) -> str:
    """Replaces FOLDER in the code of a card by the address of a repository of the hub, as each library writes it."""
    lines = []
    for line in card.split("\n"):
        ours = f"hf:{repository}" if "_jax." in line else repository
        lines.append(line.replace(f"local-dir:{FOLDER}", f"hf-hub:{repository}").replace(FOLDER, ours))
    return "\n".join(lines)


def list_results(run: Run, step: int) -> list[dict[str, Any]]:
    """Lists the last value of each metric of evaluators up to a step: `metric`, `value`, `source`, `split`, `step`.

    Results of `train-jax evaluate` are included if they are of this step.
    """
    rows: dict[str, dict[str, Any]] = {}
    evals, data = run.config.get("evals") or {}, run.config.get("data", {})
    for row in (row for row in run.history if row["step"] <= step):
        for name, value in row.items():
            options = evals.get(name.partition("/")[0]) if "/" in name else None
            if options is not None:
                source, split = options.get("source") or data.get("source"), options.get("split")
                rows[name] = {"metric": name, "value": value, "source": source, "split": split, "step": row["step"]}
    for row in (row for row in run.evaluations if row["step"] == step):
        for name, value in row.items():
            metric, on, where = name.partition(" on ")
            if on:
                source, _, split = where.rpartition(":")
                rows[name] = {"metric": metric, "value": value, "source": source, "split": split, "step": step}
    return list(rows.values())


def _read_source(source: str) -> tuple[Run | None, int]:
    """Reads the run directory that a name of weights tells, and the step of the weights."""
    directory, step = run_directory.parse_name(source)
    run = None if directory is None else read_run(directory)
    return (run, step) if run is not None and run.config else (None, 0)


def _find_base(config: Mapping[str, Any]) -> str | None:
    """Returns the repository of the hub that a run started from; None for another path or none."""
    path = known_models.find_address(config.get("pretrained") or "")
    found = re.match(r"hf:([^/@]+/[^/@]+)", path)
    return found and found[1]


def _find_start(run: Run, step: int) -> Mapping[str, Any]:
    """Returns what the run recorded of its environment when it started the last time before a step."""
    starts = run.environment.get("starts")
    before = [start for start in starts if start.get("step", 0) <= step] if isinstance(starts, list) else []
    return before[-1] if before else {}


def _tell_training(run: Run | None, step: int) -> str:
    if run is None:
        return ""
    counts = (_find_start(run, step).get("parameters") or {}).items()
    sizes = ", ".join(f"{count:,} parameters of the {player}" for player, count in counts)
    return f", after {step:,} updates of {LIBRARY}'s `{run.config['task']}`" + (f" ({sizes})" if sizes else "")


def _format_data(config: Mapping[str, Any]) -> list[str]:
    data = config.get("data", {})
    if not data.get("source"):
        return []
    licences = [f"- {line}" for line in builders.list_licences(data["source"], data.get("split", ""))]
    split = f", split `{data['split']}`" if data.get("split") else ""
    return ["## Training data\n", f"`{data['source']}`{split}.\n", *(["\n".join(licences) + "\n"] if licences else [])]


def _format_results(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return []
    columns = ("metric", "value", "source", "split", "step")
    rows = [[f"{x[c]:.4g}" if c == "value" else str(x[c]).replace("|", r"\|") for c in columns] for x in results]
    lines = [f"| {' | '.join(row)} |" for row in (("metric", "value", "data", "split", "update"), ("---",) * 5, *rows)]
    return ["## Evaluation\n", "\n".join([*lines, ""])]


def _format_config(config: Mapping[str, Any]) -> list[str]:
    """Formats the options that differ from the defaults of the trainer and the task."""
    filled = config_lib.fill(ConfigDict({"task": config["task"]}))
    defaults = json.loads(filled.to_json_best_effort())
    changes = resume.compare_configs(defaults, config)
    own = flatten(config)
    lines = [f"{name} = {new!r}" for name, (_, new) in changes.items() if name in own and not name.startswith("evals.")]
    return ["## Configuration\n", "Options that differ from the defaults.\n", "\n".join(["```", *lines, "```", ""])]


def _format_environment(start: Mapping[str, Any]) -> list[str]:
    code, versions = start.get("code") or {}, start.get("versions") or {}
    lines = [f"- commit `{code['commit']}`" + " with changes" * bool(code.get("dirty"))] if code.get("commit") else []
    lines += [f"- {start['devices']} x {start['device']}"] if start.get("device") and start.get("devices") else []
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if version)
    lines += [f"- {packages}"] if packages else []
    return ["## Versions\n", "\n".join([*lines, ""])] if lines else []
