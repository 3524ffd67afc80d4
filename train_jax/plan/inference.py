"""Programs of a model for inference, such as encoding and sampling, traced for devices that need not be present."""

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file, inference
from train_jax import task as task_lib
from train_jax.errors import ConfigError
from train_jax.options import Options
from train_jax.plan.program import Program
from train_jax.plan.targets import Target


def trace_inference(config: ConfigDict, target: Target, what: str, words: Sequence[str]) -> list[Program]:
    """Traces the programs `what` of the task of a config, one of its `PROGRAMS` (see `train_jax.task`).

    As in inference, the weights are replicated and the devices share the rows of a batch.

    Args:
      words: options of the programs, `--WHAT.NAME=VALUE`.

    Raises ConfigError for an unknown name, and for invalid options.
    """
    module = task_lib.module(config)
    programs = getattr(module, "PROGRAMS", {})
    if what not in programs:
        raise ConfigError(f"--what={what}: of {config.task} these are planned: {', '.join(('train', *programs))}")
    planned = importlib.import_module(programs[what])
    options = _parse_options(planned.OPTIONS, what, words)
    with tempfile.TemporaryDirectory() as folder:
        config, _ = module.write_placeholders(config_lib.resolve(config), Path(folder))
        return planned.make(config, Path(folder), inference.batch_mesh(target.devices()), options)


def _parse_options(options: type[Options], what: str, words: Sequence[str]) -> Options:
    try:
        return options.parse(config_file.overlay({}, words, f"--{what}.", options.defaults()), what)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"config.{what}.", f"--{what}.")) from error
