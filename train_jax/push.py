"""Uploads a model with its card to the Hugging Face Hub.

    train-jax push runs/clip-shapes org/name --licence=apache-2.0
    train-jax push saved org/name --public --revision=v1

DIR is a run directory, of which the weights for inference and the files beside them are uploaded, without the state of the
optimiser; or a folder that save_hf, save_open_clip, save_diffusers or save_karlo wrote, with its README.md. The card of a
run directory is its README.md, or made of what it contains: configuration, data, metrics, versions. The configuration tells
paths of this machine.

The repository is created if it does not exist, and private unless --public is given. `load("hf:org/name")` opens it again.
The token is that of `hf auth login`, or of the variable HF_TOKEN.
"""

import argparse
import logging
import sys

from train_jax.arguments import expand_home
from train_jax.command import run_command


def main(argv: list[str]) -> int:
    """Runs `train-jax push`. Returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        "train-jax push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("directory", metavar="DIR", help="run directory, or a folder of saved weights")
    parser.add_argument("repository", metavar="ORG/NAME", help="repository of the hub; ORG is an organisation or an account")
    parser.add_argument("--public", action="store_true", help="everybody may see the repository")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to; created if missing (default main)")
    parser.add_argument("--licence", metavar="NAME", help="licence of the weights by the hub's name, such as apache-2.0")
    parser.add_argument("--step", type=int, help="checkpoint of a run directory (default: the newest)")
    parser.set_defaults(run=_run, command="push")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return run_command("train-jax", parser.parse_args(expand_home(argv)))


def _run(options: argparse.Namespace) -> int:
    from train_jax.upload import push

    names = {name: getattr(options, name) for name in ("revision", "licence", "step")}
    print(push(options.directory, options.repository, private=not options.public, **names))
    return 0
