"""How the models' command lines answer: mistakes of the user are one line and exit code 2."""

import argparse
import os
import sys
import warnings

from PIL import Image

from train_jax.data.errors import BrokenSample
from train_jax.errors import LoadError, UserError


def answer(program: str, arguments: argparse.Namespace, mistakes: tuple[type, ...] = (), again: str = "") -> int:
    """Runs `arguments.run(arguments)`; returns the exit code: its own, 2 for a mistake of the user, 130 when interrupted.

    Args:
      program: its name; `arguments.command` is that of the command.
      mistakes: exceptions that are the user's doing, besides those of all commands.
      again: what an interrupted command says about itself.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what a terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # What has too many pixels is reported as a broken file; Pillow's warning would tear the progress bar.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (LoadError, BrokenSample, UserError, *mistakes) as error:
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
