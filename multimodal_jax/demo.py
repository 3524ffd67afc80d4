"""The demo of all models: the four parts of `make demo`, one after the other."""

import argparse
import subprocess
import sys

PARTS = ("clip_jax.demo", "vqgan_jax.demo", "dalle_jax.demo", "vqgan_jax.guided.demo")


def run(arguments: argparse.Namespace) -> int:
    """Runs the parts, each in a process of its own, whose memory is free for the next one.

    Returns the exit code of the first part that fails, or 0.
    """
    options = ["--data", arguments.data] + (["--workdir", arguments.workdir] if arguments.workdir else [])
    for part in PARTS:
        code = subprocess.run([sys.executable, "-m", part, *options], check=False).returncode
        if code:
            return code
    return 0
