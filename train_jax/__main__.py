"""Trains the model of a config in a run directory.

    train-jax --config=configs/clip/shapes.py --workdir=runs/clip-shapes
    train-jax --config=clip/shapes --workdir=runs/small --config.optim.lr=3e-4 --config.steps=500
    train-jax --config=clip/shapes --workdir=runs/fsdp --config.mesh.fsdp=4 --profile
    train-jax --config=clip/vit_b32 --machine=8xh100 --options

The same as `python -m train_jax`. A config is a Python file, or one of the shipped ones by its name. Any option can be
overridden by `--config.NAME=VALUE`, an evaluator left out by `--config.evals.NAME=none`, all of them by
`--config.evals=none`; what is unknown is an error. The same command again resumes the run; with --reset-optimizer, under
other options of the optimiser. On TPU pods, Slurm, Open MPI and Kubernetes the hosts find each other; elsewhere start one
process a host with --coordinator=HOST:PORT --processes=N --process_index=I. All share the --workdir.
"""

import argparse
import logging
import sys

from ml_collections import ConfigDict

import train_jax
from train_jax import config as config_lib
from train_jax import config_file, distributed
from train_jax.agreement import PeerError
from train_jax.arguments import expanded
from train_jax.checkpoint import CheckpointError
from train_jax.data.sources import DataError
from train_jax.errors import ConfigError, LoadError, Stopped


def cli(argv: list[str] | None = None) -> None:
    """The console command. Exits with an `error: …` line for a mistake of the user."""
    parser = argparse.ArgumentParser(
        "train-jax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="CONFIG", help="a file with get_config(), or clip/shapes, …")
    parser.add_argument("--workdir", help="run directory; made if missing, resumed if not")
    parser.add_argument(
        "--machine", metavar="NAME", help=f"how to compute: {', '.join(config_file.machines())}, or a file like these"
    )
    parser.add_argument("--options", action="store_true", help="print every option of CONFIG with its value, and stop")
    parser.add_argument("--profile", action="store_true", help="write a trace of a few updates to WORKDIR/profile")
    parser.add_argument(
        "--reset-optimizer", action="store_true", help="resume with fresh moments, under other options of the optimiser"
    )
    parser.add_argument(
        "--distributed",
        choices=distributed.MODES,
        default="auto",
        help="join the hosts of a cluster: where JAX recognises one (auto), always, never",
    )
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where no cluster is recognised")
    parser.add_argument("--processes", type=int, help="number of processes, with --coordinator")
    parser.add_argument("--process_index", type=int, help="index of this process, with --coordinator")
    arguments, overrides = parser.parse_known_args(expanded(argv))
    for word in overrides:
        if not word.startswith(config_file.OPTION):
            parser.error(f"unexpected argument {word!r}: options are written {config_file.OPTION}NAME=VALUE")
    if not arguments.workdir and not arguments.options:
        parser.error("the following arguments are required: --workdir")
    try:
        main(arguments, overrides)
    except (ConfigError, LoadError, DataError, CheckpointError, FloatingPointError, PeerError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:  # before the loop, which saves, or a second time, upon which nothing is saved
        print("train-jax: interrupted; the same command goes on from the newest checkpoint, if any", file=sys.stderr)
        sys.exit(130)


def main(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = config_file.load(arguments.config)
    if arguments.machine:
        config = config_file.on_machine(config, arguments.machine)
    config = config_file.override(config, overrides)
    if arguments.options:
        print_options(config)
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("train_jax").setLevel(logging.INFO)
    logging.getLogger(config.task.partition(".")[0]).setLevel(logging.INFO)
    distributed.initialize(arguments.coordinator, arguments.processes, arguments.process_index, mode=arguments.distributed)
    train_jax.run(config, arguments.workdir, profile=arguments.profile, reset_optimizer=arguments.reset_optimizer)


def print_options(config: ConfigDict) -> None:
    """Prints every option of a config, one per line: name, value, default if different, meaning."""
    full = config_lib.fill(config)
    for name, default, meaning in config_lib.documentation(config):
        value = config_file.option(full, name)
        value = default if value is None else value
        default, value = (x.to_dict() if isinstance(x, ConfigDict) else x for x in (default, value))
        note = "" if value == default else f" [default {default!r}]"
        print(f"{name} = {value!r}{note}  # {meaning}")


if __name__ == "__main__":
    cli()
