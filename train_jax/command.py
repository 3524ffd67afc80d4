"""Command lines of the models: parsers and exit codes. User errors print one line and exit with code 2."""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from train_jax.arguments import expand_home
from train_jax.errors import ConfigError, Stopped, UserError


def parser(program: str, text: str, examples: Mapping[str, str]) -> tuple[argparse.ArgumentParser, Callable]:
    """Makes the argument parser of a program with subcommands. Returns `(parser, add)`.

    `add(name, text, run)` adds a subcommand and returns its parser.

    Args:
      examples: command name -> text at the end of its help; the key "" holds that of the program.
    """
    raw = argparse.RawDescriptionHelpFormatter
    program_parser = argparse.ArgumentParser(program, description=text, epilog=examples[""], formatter_class=raw)
    commands = program_parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int] | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=examples[name], formatter_class=raw)
        sub.set_defaults(run=run, command=name)
        return sub

    return program_parser, add


def train(argv: list[str]) -> int:
    """Runs `PROGRAM train …`, which is equivalent to `train-jax …`."""
    from train_jax.__main__ import cli

    cli(argv)
    return 0


def run_command(program: str, arguments: argparse.Namespace, again: str = "") -> int:
    """Runs a command and returns its exit code: 2 for a user error, 130 if interrupted.

    Args:
      program: name of the program for messages.
      arguments: parsed arguments, with the function `run` and the name `command` of the command.
      again: hint that is printed after an interruption.
    """
    # Lazy imports, so that --help and invalid arguments respond at once.
    from PIL import Image

    from train_jax import installation
    from train_jax.data.errors import BrokenSample

    for stream in (sys.stdout, sys.stderr):  # file names may contain characters that the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # Images with too many pixels are reported as broken files; Pillow's warning would disrupt the progress bar.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        installation.check_import_name()
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (UserError, BrokenSample) as error:
        message = str(error)
    except BrokenPipeError:  # such as `| head`; discard the rest of the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted{again}", file=sys.stderr)
        return 130
    print(f"{program} {arguments.command}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def exit_code(program: str, work: Callable[[], None], again: str) -> int:
    """Does the work of a program and returns its exit code: 0, 2 for a user error, or that of a signal.

    Args:
      program: name of the program for messages.
      work: function that may also raise Stopped, whose exit code is returned.
      again: what a repetition of an interrupted command does.
    """
    from train_jax.data.errors import USER_ERRORS

    try:
        work()
    except USER_ERRORS as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {again}", file=sys.stderr)
        return 130
    return 0


DEMOS = ("shapes", "emoji")  # data sets with a module `demo`


def open_demo(data: str) -> ModuleType:
    """Imports what there is to show of a data set of `DEMOS`: configs, queries, prompts, options of paintings."""
    return importlib.import_module(f"train_jax.datasets.{data}.demo")


def _check_demo_config(config, name: str, family: str, data: str) -> None:
    """Raises ConfigError if a config trains another family, or on other data, than a demo shows."""
    from train_jax.data import mixture

    parts = (mixture.split_conditions(part)[0] for _, part in mixture.parse(config.data.source))
    sources = dict.fromkeys(part.split("/")[0] for part in parts)
    if config.task != f"{family}_jax.task" or list(sources) != [data]:
        raise ConfigError(
            f"--config={name} has the task {config.task} on {', '.join(sources)}, but this demo shows {family}_jax.task on "
            f"{data}: name a config of it, such as {open_demo(data).CONFIGS[family]}, or choose other --data"
        )


def run_demo(argv: list[str] | None, module: str, text: str, family: str | None, run: Callable) -> int:
    """Runs one part of `make demo` or `make emoji` and returns its exit code.

    The code is 0, 2 for a user error, or 130 or 143 if a signal stopped the demo. A stopped demo leaves results, images
    and page unchanged.

    Args:
      module: name of the module, which is run as `python -m`.
      family: the family that is trained, such as "clip"; None: the demo trains nothing.
      run: `(demo, config, working directory)`, or `(demo, working directory)` if the demo trains nothing. `demo` is the
        result of `open_demo`.
    """
    from train_jax import config_file

    demo_parser = argparse.ArgumentParser(f"python -m {module}", description=text)
    demo_parser.add_argument("--data", default="shapes", choices=DEMOS, help="what is shown (default shapes)")
    demo_parser.add_argument("--workdir", help="output directory (default runs/demo, or runs/emoji)")
    if family is not None:
        demo_parser.add_argument("--config", help=f"config file or name (default {family}/demo, or {family}/emoji)")
    arguments = demo_parser.parse_args(expand_home(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    demo = open_demo(arguments.data)

    def work() -> None:
        configs = ()
        if family is not None:
            name = arguments.config or demo.CONFIGS[family]
            configs = (config_file.load(name),)
            _check_demo_config(*configs, name, family, arguments.data)
        run(demo, *configs, Path(arguments.workdir or demo.RUNS))

    return exit_code(f"python -m {module}", work, "repeat the command to continue")
