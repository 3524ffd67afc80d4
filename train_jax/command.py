"""Command lines of the models: parsers and exit codes. Mistakes of the user print one line and exit with code 2."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from train_jax.arguments import expanded
from train_jax.errors import ConfigError, LoadError, Stopped, UserError


def parser(program: str, text: str, examples: Mapping[str, str]) -> tuple[argparse.ArgumentParser, Callable]:
    """Makes the parser of a program with commands: `(parser, add)`; `add(name, text, run)` adds a command and returns
    its parser.

    Args:
      examples: what stands at the end of the help of each command, by its name; "": of the program.
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
    """Runs `PROGRAM train …`: the same as `train-jax …`."""
    from train_jax.__main__ import cli

    cli(argv)
    return 0


def answer(program: str, arguments: argparse.Namespace, mistakes: tuple[type, ...] = (), again: str = "") -> int:
    """Runs `arguments.run(arguments)`; returns the exit code: its own, 2 for a mistake of the user, 130 when
    interrupted.

    Args:
      program: its name; `arguments.command` is that of the command.
      mistakes: exceptions that are the user's doing, besides those of all commands.
      again: what an interrupted command says about itself.
    """
    # Late, so that --help and wrong arguments are answered at once.
    from PIL import Image

    from train_jax.data.errors import BrokenSample, DataError

    for stream in (sys.stdout, sys.stderr):  # names of files may hold what a terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # What has too many pixels is reported as a broken file; Pillow's warning would tear the progress bar.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (ConfigError, LoadError, BrokenSample, DataError, UserError, *mistakes) as error:
        message = str(error)
    except BrokenPipeError:  # `| head` has read enough; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted{again}", file=sys.stderr)
        return 130
    print(f"{program} {arguments.command}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def demo(
    argv: list[str] | None, module: str, text: str, config: str | None, run: Callable, mistakes: tuple[type, ...] = ()
) -> int:
    """The command line of a part of `make demo`; returns the exit code: 0, 2 for a mistake of the user, 130 or 143
    where a
    signal stopped it, which leaves results, pictures and page as they were.

    Args:
      module: to be called as `python -m`.
      config: name of what it trains unless told otherwise; None: nothing.
      run: `(config, working directory)`, or `(working directory)` where nothing is trained.
      mistakes: as in `answer`.
    """
    from train_jax import config_file
    from train_jax.agreement import PeerError
    from train_jax.checkpoint import CheckpointError
    from train_jax.data.errors import DataError

    asked = argparse.ArgumentParser(f"python -m {module}", description=text)
    asked.add_argument("--workdir", default="runs/demo", help="where everything goes (default runs/demo)")
    if config is not None:
        asked.add_argument("--config", default=config, help="what to train, a file or a name (default %(default)s)")
    arguments = asked.parse_args(expanded(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        what = () if config is None else (config_file.load(arguments.config),)
        run(*what, Path(arguments.workdir))
    except (
        ConfigError, DataError, LoadError, CheckpointError, PeerError, FloatingPointError, OSError, *mistakes
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(f"python -m {module}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
