"""Models to evaluate without training: a run directory, or public weights as a run that starts from them.

Both are a resolved config whose task makes the evaluators. The weights are those of a checkpoint, or of
`config.pretrained`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file, paths, run_directory, sharding, trained_weights
from train_jax import task as task_lib
from train_jax.checkpoint import CheckpointError
from train_jax.errors import ConfigError, LoadError
from train_jax.paths import AnyPath
from train_jax.task import Task
from train_jax.weights import hub

# Name of a family -> its task.
FAMILIES = {
    "clip": "clip_jax.task",
    "vqgan": "vqgan_jax.task",
    "prior": "vqgan_jax.prior.task",
    "dalle": "dalle_jax.task",
}


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """Model whose weights are not read yet.

    Attributes:
      name: run directory or path of the weights, as the user wrote it.
      family: name of the family, or the task of another one.
      config: resolved config with the chosen evaluators.
      directory: run directory; None: public weights.
      step: step of the checkpoint; None: the newest readable one, or no run.
      checkpoint: opened public weights of a family without `config.pretrained`.
    """

    name: str
    family: str
    config: ConfigDict
    directory: AnyPath | None = None
    step: int | None = None
    checkpoint: Any = None

    def make_task(self) -> Task:
        """Makes the task. Raises LoadError if artifacts of the run are missing or changed."""
        module = task_lib.module(self.config)
        if self.checkpoint is not None:
            return module.make_evaluation(self.config, self.checkpoint)
        if self.directory is not None:
            run_directory.check_artifacts(self.directory)
        return module.make(self.config, self.directory)

    def load_weights(self, task: Task) -> tuple[dict, dict, int | None]:
        """Loads `(params, extra, step)` on the host, averaged if the run averages them. Raises LoadError."""
        if self.directory is None:
            return *task.pretrained(), None
        try:
            return trained_weights.load_weights(self.directory / "checkpoints", self.step)
        except (FileNotFoundError, CheckpointError) as error:
            raise LoadError(str(error)) from error


def open_model(
    name: str,
    *,
    family: str | None = None,
    step: int | None = None,
    evaluators: Sequence[str] | None = None,
    source: str | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
) -> OpenedModel:
    """Opens a run directory or public weights. No weights are read.

    Args:
      family: name in FAMILIES; None: the run's, or the only one that can open the weights.
      step: step of the checkpoint of a run; None: the newest.
      evaluators: names of the run's evaluators, or types of evaluators; None: all of the run.
      source, split: data of all evaluators; None: those of the config.
      overrides: arguments of the form `--config.NAME=VALUE`.

    Raises ConfigError for options that do not exist or contradict each other, LoadError if nothing can open the model.
    """
    choices = {"evaluators": evaluators, "source": source, "split": split, "overrides": overrides}
    directory = None if hub.is_name(name) else paths.absolute(name)
    saved = None if directory is None else run_directory.read_config(directory)
    if saved is not None:
        own_family = next((family for family, task in FAMILIES.items() if task == saved["task"]), str(saved["task"]))
        if family not in (None, own_family):
            raise ConfigError(f"--family={family}: {name} is a run of {saved['task']!r}")
        # The run's own weights and artifacts replace those of the checkpoint that it started from.
        start = {"pretrained": ""} if "pretrained" in saved else {}
        return OpenedModel(name, own_family, _configure(saved | start, **choices), directory, step)
    if step is not None:
        raise ConfigError(f"--step={step}: {name} is no run directory of train-jax, so it has no checkpoints by step")
    if not source or not evaluators:
        raise ConfigError(f"{name} is no run directory, whose config names evaluators and data: add --evals=… and --data=…")
    families = _list_families(evaluators) if family is None else [family]
    if len(families) > 1 and hub.is_name(name):  # each attempt would download what its family reads
        raise ConfigError(f"{name}: name the family of the weights, --family={'|'.join(families)}")
    opened, refusals = [], []
    for candidate in families:
        try:
            opened.append(_open_weights(name, candidate, choices))
        except LoadError as error:
            refusals.append(str(error))
    if not opened:
        raise LoadError("; ".join(refusals))
    if len(opened) > 1:
        raise LoadError(f"{name}: several families open it: add --family={'|'.join(model.family for model in opened)}")
    return opened[0]


def _list_families(evaluators: Sequence[str]) -> list[str]:
    """Lists the families that have all of these types of evaluators. Raises ConfigError if there is none."""
    types = {family: task_lib.module(ConfigDict({"task": task})).EVALUATORS for family, task in FAMILIES.items()}
    families = [family for family, own in types.items() if all(name in own for name in evaluators)]
    if not families:
        listed = "; ".join(f"{family}: {', '.join(own)}" for family, own in types.items())
        raise ConfigError(f"--evals={','.join(evaluators)}: no family has these types of evaluators. {listed}")
    return families


def _open_weights(name: str, family: str, choices: Mapping[str, Any]) -> OpenedModel:
    """Opens public weights of a family. Raises LoadError if they are of another one."""
    config = {"task": FAMILIES[family], "steps": 1, "data": {"source": choices["source"]}}
    module, checkpoint = task_lib.module(ConfigDict(config)), None
    if hasattr(module, "open_weights"):
        checkpoint = module.open_weights(name)
        config["model"] = checkpoint.options.to_dict()
    else:
        config["pretrained"] = name
    return OpenedModel(name, family, _configure(config, **choices), checkpoint=checkpoint)


def _configure(
    options: dict, evaluators: Sequence[str] | None, source: str | None, split: str | None, overrides: Sequence[str]
) -> ConfigDict:
    """Resolves a config with the chosen evaluators, their data and the user's overrides."""
    config = ConfigDict(options)
    types, stated = task_lib.module(config).EVALUATORS, (config.get("evals") or ConfigDict()).to_dict()
    if evaluators is not None:
        for name in evaluators:
            if name not in stated and name not in types:
                raise ConfigError(
                    f"--evals: there is no evaluator {name!r}; the config has {', '.join(stated) or 'none'}, and the types "
                    f"of this task are {', '.join(types)}"
                )
        stated = {name: stated.get(name, {"type": name}) for name in evaluators}
    for evaluator in stated.values():
        evaluator |= {key: x for key, x in (("source", source), ("split", split)) if x is not None}
    config.evals = ConfigDict(stated)
    config = config_lib.resolve(config_file.override(config, overrides))
    if not config.evals:
        raise ConfigError(f"there is nothing to evaluate: name evaluators by --evals, of the types {', '.join(types)}")
    return config


def place(task: Task, mesh: Mesh, params: Any, extra: Any) -> tuple[Any, Any]:
    """Copies weights to the mesh, sharded as in training."""
    boxed = jax.eval_shape(lambda: task.init(jax.random.key(0), {}))
    shardings = {
        sharding.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(sharding.shardings(boxed, mesh))
    }

    def place_one(path, x):
        x = np.asarray(x)
        placement = shardings.get(sharding.path_name(path), sharding.replicated(mesh))
        return jax.make_array_from_callback(x.shape, placement, lambda index: x[index])

    return jax.tree_util.tree_map_with_path(place_one, (params, extra))


def compute_fingerprint(model: OpenedModel, task: Task, params: Any, extra: Any) -> str:
    """Computes a hexadecimal SHA-256 of weights, model options and artifacts; not of paths and precision."""
    options = task_lib.module(model.config).OPTIONS
    own = {field.name: model.config[field.name] for field in dataclasses.fields(options)}
    digest = hashlib.sha256(json.dumps([model.config.task, options.parse(own, "").identity()], sort_keys=True).encode())
    for name, content in sorted(task.artifacts.items()):
        digest.update(name.encode() + hashlib.sha256(content if isinstance(content, bytes) else content.encode()).digest())
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, extra)):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{sharding.path_name(path)} {array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    return digest.hexdigest()
