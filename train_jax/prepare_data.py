"""Prepares data sets: downloads or makes them and writes their files, once.

    train-jax prepare shapes/64 digits
    train-jax prepare tfds:cifar10 --data-dir=/data
    train-jax prepare emoji/64
    train-jax prepare emoji/128/held_out=twemoji/languages=en+el --from=FOLDER_OF_TARBALLS

SOURCE is a source as `--config.data.source` names it. Prepared sets are left as they are, and a repeated command continues
an interrupted one. Training prepares `shapes`, `digits` and `tfds:NAME` itself on first use; `emoji` is prepared here alone,
since its drawings have licences, which this command prints. The drawings come from npm (`npm pack`), or from the folder
--from, which then needs no network.
"""

import argparse
import logging
import sys

from train_jax.arguments import expand_home
from train_jax.command import run_command
from train_jax.data import builders
from train_jax.data.errors import DataError
from train_jax.datasets.emoji.tarballs import LICENCES


def main(argv: list[str]) -> int:
    """Runs `train-jax prepare`. Returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        "train-jax prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="data source, such as emoji/64")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of TFDS data sets, as --config.data.data_dir names it")
    parser.add_argument("--from", dest="tarballs", metavar="FOLDER", help="folder of the npm tarballs of emoji")
    parser.set_defaults(run=_run, command="prepare")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("train_jax").setLevel(logging.INFO)
    return run_command("train-jax", parser.parse_args(expand_home(argv)), again="; the same command continues")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.tarballs == "":
        raise DataError("--from is empty: name the folder of the npm tarballs, or leave it out, and npm downloads them")
    if arguments.data_dir == "":
        raise DataError("--data-dir is empty: name the directory of TFDS data sets, or leave it out for TFDS's own")
    for name in arguments.sources:
        for builder in builders.prepare(name, arguments.data_dir, arguments.tarballs):
            print(describe(builder), flush=True)
    return 0


def describe(builder) -> str:
    """Formats name, splits, folder and licences of a prepared data set."""
    splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    text = f"{builder.info.full_name}: {splits}\n{builder.data_path}"
    file = builder.data_path / LICENCES
    return "\n".join([text, file.read_text(encoding="utf-8")]) if file.exists() else text
