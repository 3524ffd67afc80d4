"""Adapters as a file of their own: what a run with `optim.lora` adds to the weights that it started from.

    train-jax merge hf:openai/clip-vit-base-patch32 runs/tuned/adapters.safetensors --workdir=runs/merged

A finished run writes `adapters.safetensors`, a few MB, into its directory. `train-jax merge` adds it to the same weights, a
run or anything that `config.pretrained` opens, and writes a run directory, which `load` of every family opens: its weights
are those of the run, bit for bit. Weights of other shapes or values are refused.

The file holds the averages of adapters if the run averages them, and whatever else differs from the weights that it started
from, such as a codebook that is no parameter, or a discriminator that they lack. Names are those of the parameters. Its
metadata contain the config of the run, and hashes of these weights and of the files that they need, such as a tokenizer.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from train_jax import arguments, lora, paths, run_directory, trained_weights
from train_jax import config as config_lib
from train_jax import task as task_lib
from train_jax.arguments import expand_home
from train_jax.command import run_command
from train_jax.environment import record_code
from train_jax.errors import ConfigError, LoadError, UserError
from train_jax.paths import AnyPath
from train_jax.prepare import describe
from train_jax.task import Task
from train_jax.weights import single_file
from train_jax.weights.layout import hash_arrays

FILE = "adapters.safetensors"  # in a run directory
_KEY = "train_jax.adapters"  # of the description in the metadata


def main(argv: list[str]) -> int:
    """Runs `train-jax merge`. Returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        "train-jax merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("base", metavar="BASE", help="weights that the adapters were trained on: a run, or public weights")
    parser.add_argument("adapters", metavar="FILE", help=f"{FILE} of a run")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory to write")
    parser.set_defaults(run=_run, command="merge")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return run_command("train-jax", parser.parse_args(expand_home(argv)))


def _run(options: argparse.Namespace) -> int:
    workdir = paths.run_directory(options.workdir)
    if (workdir / "config.json").exists():
        raise UserError(f"--workdir={options.workdir} is a run directory already: name another")
    arguments.check_folder(str(workdir), "--workdir")
    merge(options.base, Path(options.adapters), workdir)
    print(options.workdir)
    return 0


def write(workdir: AnyPath) -> None:
    """Writes the adapters of a run's newest checkpoint to `adapters.safetensors` in its directory.

    All hosts must call it; process 0 writes.
    Raises LoadError if the checkpoint or the weights that the run started from cannot be read.
    """
    saved = run_directory.read_config(workdir)
    params, extra, step = trained_weights.load_weights(workdir / "checkpoints", merged=False)
    task, base = _open_base(saved, saved["pretrained"])
    arrays = _flatten(params, extra)
    changed = {name: x for name, x in arrays.items() if name not in base or not _is_same(x, base[name])}
    description = {"config": saved, "step": step, "base": _compute_hash(base), "artifacts": _hash_artifacts(task)}
    if jax.process_index() == 0:
        paths.replace_file(workdir / FILE, single_file.to_bytes(_KEY, description, changed))


def merge(base: str, file: Path, workdir: AnyPath) -> None:
    """Adds adapters to the weights `base`, and writes the result as a run directory, from which training cannot resume.

    Args:
      base: weights that the adapters were trained on: anything that `config.pretrained` opens.
      file: `adapters.safetensors` of a run.
      workdir: directory to write.

    Raises LoadError if the file holds no adapters, ConfigError if they were trained on other weights.
    """
    opened = single_file.open_file(file, _KEY) if file.is_file() else None
    if opened is None:
        raise LoadError(f"{file} holds no adapters: name {FILE}, which a run with config.optim.lora writes")
    description, read = opened
    task, weights = _open_base(description["config"], base)
    changed = read()
    for name, x in changed.items():
        _check_kernel(name, x, weights, f"{file} does not fit {base}")
    if (_compute_hash(weights), _hash_artifacts(task)) != (description["base"], description["artifacts"]):
        start = description["config"]["pretrained"]
        raise ConfigError(
            f"{base} has other weights, or other files such as a tokenizer, than {start}, on which {file} was trained: name "
            "the same weights"
        )
    tree = unflatten_dict({**weights, **changed}, sep="/")
    trained_weights.write_weights(
        workdir / "checkpoints", description["step"], lora.merge(tree["params"]), tree.get("extra", {})
    )
    record_code(workdir, description["step"])
    # The last, since config.json makes the folder a run directory.
    describe(_configure(description["config"], base), task.artifacts, workdir)


def _configure(saved: Mapping[str, Any], base: str) -> ConfigDict:
    """Resolves the config of a run as one that starts from `base`, with the options of its model as they are."""
    config = config_lib.resolve(ConfigDict({**saved, "pretrained": ""}))
    config.pretrained = base
    return config


def _open_base(saved: Mapping[str, Any], base: str) -> tuple[Task, dict[str, np.ndarray]]:
    """Opens the weights that a run started from. Returns the task, and arrays by path name, in the float32 of training."""
    config = _configure(saved, base)
    task = task_lib.module(config).make(config, None)
    arrays = _flatten(*task.pretrained())
    return task, {name: x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x for name, x in arrays.items()}


def _flatten(params: Mapping, extra: Mapping) -> dict[str, np.ndarray]:
    arrays = flatten_dict({"params": params, "extra": extra}, sep="/")
    return {name: np.asarray(x) for name, x in arrays.items()}


def _is_same(x: np.ndarray, y: np.ndarray) -> bool:
    """Returns whether arrays have the same bits: an average of -0 is 0."""
    return (x.dtype, x.shape) == (y.dtype, y.shape) and x.tobytes() == y.tobytes()


def _check_kernel(name: str, x: np.ndarray, base: Mapping[str, np.ndarray], message: str) -> None:
    """Raises ConfigError if `x` is a matrix of an adapter, and `base` has no such kernel."""
    player, is_adapter, path = name.removeprefix("params/").partition(f"/{lora.ADAPTERS}/")
    kernel, _, part = path.rpartition("/")
    if not is_adapter or part not in ("a", "b"):
        return
    shape = base[f"params/{player}/{kernel}"].shape if f"params/{player}/{kernel}" in base else None
    if shape is None or any(size not in (1, full) for size, full in zip(x.shape[:-1], shape, strict=False)):
        raise ConfigError(f"{message}: {player}/{kernel} is {shape or 'missing'}, and its adapter has {x.shape[:-1]}")


def _compute_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Computes a hexadecimal SHA-256 of arrays and their names."""
    digest = hashlib.sha256()
    hash_arrays(digest, arrays)
    return digest.hexdigest()


def _hash_artifacts(task: Task) -> str:
    contents = {name: x if isinstance(x, bytes) else x.encode() for name, x in task.artifacts.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
