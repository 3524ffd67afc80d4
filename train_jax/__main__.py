"""Trains a model from a config in a run directory.

    train-jax --config=configs/clip/shapes.py --workdir=runs/clip-shapes
    train-jax --config=clip/shapes --workdir=runs/small --config.optim.lr=3e-4 --config.steps=500
    train-jax --config=clip/shapes --workdir=runs/fsdp --config.mesh.fsdp=4 --profile
    train-jax --config=clip/vit_b32 --machine=8xh100 --options

`train-jax sweep --help` trains many runs of a config, `train-jax runs --help` compares runs, `train-jax evaluate --help`
evaluates runs and public weights without training, `train-jax finetune --help` trains on from weights and tells what was
gained and forgotten, `train-jax blend --help` interpolates between weights, `train-jax merge --help` adds a file of adapters
to the weights that they were trained on, `train-jax push --help` uploads weights with a card to the Hugging Face Hub,
`train-jax prepare --help` prepares data sets, and `train-jax plan --help` plans memory and time for machines that are not
present.

Equivalent to `python -m train_jax`. CONFIG is a Python file or the name of a shipped config. `--config.NAME=VALUE`
overrides any option, `--config.evals.NAME=none` disables one evaluator, `--config.evals=none` disables all of them;
unknown options are errors. Repeating the command resumes the run; --reset-optimizer allows changed optimiser options. On
TPU pods, Slurm, Open MPI and Kubernetes the hosts find each other; elsewhere start one process per host with
--coordinator=HOST:PORT --processes=N --process_index=I. All hosts share the --workdir.
"""

import argparse
import importlib
import logging
import sys

from ml_collections import ConfigDict

from train_jax import installation
from train_jax.data.errors import USER_ERRORS
from train_jax.errors import Stopped, UserError

# Imported when they are called: `train-jax runs` does not need JAX, whose import takes seconds.
_COMMANDS = {
    "blend": "train_jax.evaluation.blend",
    "evaluate": "train_jax.evaluation.command",
    "finetune": "train_jax.finetune",
    "merge": "train_jax.adapters",
    "plan": "train_jax.plan.command",
    "prepare": "train_jax.prepare_data",
    "push": "train_jax.push",
    "runs": "train_jax.runs.command",
    "sweep": "train_jax.sweep.command",
}


def cli(argv: list[str] | None = None) -> None:
    """Runs the console command `train-jax`. User errors exit with one line, `error: …`."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        installation.check_import_name()
    except UserError as error:
        sys.exit(f"error: {error}")
    for name, module in _COMMANDS.items():
        if argv[:1] == [name]:
            sys.exit(importlib.import_module(module).main(argv[1:]))
    from train_jax import config_file, distributed

    parser = argparse.ArgumentParser(
        "train-jax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="CONFIG", help="config file or name, such as clip/shapes")
    parser.add_argument("--workdir", help="run directory; created if missing, resumed if it exists")
    parser.add_argument(
        "--machine", metavar="NAME", help=f"machine preset: {', '.join(config_file.machines())}, or a preset file"
    )
    parser.add_argument("--options", action="store_true", help="print every option of CONFIG with its value and exit")
    parser.add_argument("--profile", action="store_true", help="write a trace of a few updates to WORKDIR/profile")
    parser.add_argument(
        "--reset-optimizer", action="store_true", help="resume with a new optimiser state; allows other optim options"
    )
    parser.add_argument(
        "--distributed",
        choices=distributed.MODES,
        default="auto",
        help="multi-host training: if JAX detects a cluster (auto), always (on), never (off)",
    )
    parser.add_argument("--coordinator", help="HOST:PORT of process 0; required if JAX detects no cluster")
    parser.add_argument("--processes", type=int, help="number of processes; requires --coordinator")
    parser.add_argument("--process_index", type=int, help="index of this process; requires --coordinator")
    arguments, overrides = config_file.parse_arguments(parser, argv)
    if not arguments.workdir and not arguments.options:
        parser.error("the following arguments are required: --workdir")
    try:
        main(arguments, overrides)
    except USER_ERRORS as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:  # before the training loop starts, or the second Ctrl-C: nothing is saved
        print("train-jax: interrupted; the same command goes on from the newest checkpoint, if any", file=sys.stderr)
        sys.exit(130)


def main(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Trains with the parsed command line, or prints the options of the config."""
    import train_jax
    from train_jax import config_file, distributed

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
    """Prints every option of a config on one line: name, value, default if different, meaning."""
    from train_jax import config as config_lib
    from train_jax import config_file

    full = config_lib.fill(config)
    for name, default, meaning in config_lib.documentation(config):
        value = config_file.option(full, name)
        value = default if value is None else value
        default, value = (x.to_dict() if isinstance(x, ConfigDict) else x for x in (default, value))
        note = "" if value == default else f" [default {default!r}]"
        print(f"{name} = {value!r}{note}  # {meaning}")


if __name__ == "__main__":
    cli()
