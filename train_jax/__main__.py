"""Trains what a config file says, in a run directory.

    train-jax --config=configs/clip/shapes.py --workdir=runs/clip-shapes
    train-jax --config=configs/clip/shapes.py --workdir=runs/small --config.optim.lr=3e-4 --config.steps=500
    train-jax --config=configs/clip/shapes.py --workdir=runs/fsdp --config.mesh.fsdp=4 --profile

The same as `python -m train_jax`. Any option can be overridden by `--config.…`; an unknown one is an error. The same
command again resumes the run. On TPU pods, Slurm, Open MPI and Kubernetes the hosts find each other; elsewhere start one
process a host with --coordinator=HOST:PORT --processes=N --process_index=I. All share the --workdir.
"""

import functools
import importlib.util
import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

import train_jax
from train_jax import config as config_lib
from train_jax import distributed
from train_jax.agreement import PeerError
from train_jax.data.sources import DataError
from train_jax.errors import ConfigError, LoadError, Stopped

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; made if missing, resumed if not.")
_PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few updates to WORKDIR/profile.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", distributed.MODES, "Join the hosts of a cluster: where JAX recognises one; always; never."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster is recognised.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Index of this process, with --coordinator.")


def cli() -> None:
    """The console command: takes --config=FILE out of the arguments, then lets absl parse the rest."""
    if {"--help", "-help", "-h", "-?"} & set(sys.argv[1:]):
        # absl would describe the script that called, not this module.
        print(f"{__doc__}\n{flags.FLAGS.module_help(__name__)}")
        return
    arguments = sys.argv[:1]
    path = None
    words = iter(sys.argv[1:])
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "config":
            path = value if equals else next(words, "")
        else:
            arguments.append(word)
    config = None
    if path is not None:
        try:
            full = config_lib.resolve(load(path))
        except (ConfigError, LoadError) as error:
            sys.exit(f"error: {error}")
        # New keys are let through here, and refused with a better message when the whole config is checked.
        config = config_flags.DEFINE_config_dict(
            "config", full, lock_config=False, sys_argv=arguments, accept_new_attributes=True
        )
    app.run(functools.partial(main, config), argv=arguments)


def main(config, argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: options are written --config.NAME=VALUE")
    if config is None:
        raise app.UsageError("name a config: --config=configs/clip/shapes.py")
    if not _WORKDIR.value:
        raise app.UsageError("name a run directory: --workdir=runs/clip-shapes")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("train_jax").setLevel(logging.INFO)
    logging.getLogger(config.value.task.partition(".")[0]).setLevel(logging.INFO)
    try:
        distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS_INDEX.value, mode=_DISTRIBUTED.value)
        train_jax.run(config.value, _WORKDIR.value, profile=_PROFILE.value)
    except (ConfigError, LoadError, DataError, FloatingPointError, PeerError) as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)


def load(path: str) -> ConfigDict:
    """The ConfigDict that `get_config()` of the Python file at `path` returns; ConfigError if it has none."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config={path}: there is no such file")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path}: the file defines no get_config()")
    return module.get_config()


if __name__ == "__main__":
    cli()
