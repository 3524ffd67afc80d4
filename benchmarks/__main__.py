"""Runs all benchmarks that need no trained model, one after the other, and writes the tables of docs/benchmarks.md.

    python -m benchmarks [--quick] [--only clip data]

Sizes suit the device. With --quick all take ten minutes on two cores, in smaller sizes, and those of half an hour are left
out. On an accelerator, `python -m benchmarks.accelerator` comes first. Benchmarks of trained models (drawing, painting), and
plans for absent machines (plans) are called by name: their docstrings tell which runs and packages they need.
"""

import argparse
import sys
from typing import NamedTuple

from benchmarks import accelerator, report, results, runner


class Sizes(NamedTuple):
    """Arguments of a benchmark by the device; None: it does not run there."""

    cpu: str | None
    accelerator: str | None
    quick: str | None


# A module with several kinds of rows is named once for each: "MODULE KIND".
BENCHMARKS = {
    "ceilings": Sizes("--n 2048", None, "--n 1024"),
    "parity": Sizes("", None, None),
    "clip": Sizes("", "--batch 256 --dtype bfloat16", "--batch 4 --rounds 3"),
    "vqgan": Sizes("", "--batch 8 --dtype bfloat16", "--size 64 --rounds 3"),
    "dalle": Sizes("--models 72m", "--dtype bfloat16", "--models 72m --batches 1 8 --codes 16 --rounds 3"),
    "unclip": Sizes("--narrow 2 --rounds 3", "--batch 8 --dtype bfloat16", "--narrow 16 --rounds 3"),
    "guided": Sizes("", "--dtype bfloat16", "--size 64 --cuts 4 --steps 2 --rounds 2 --together 0"),
    "step": Sizes("", "", ""),
    "scaling": Sizes("", "--published", "--families clip --batches 32 128 --devices 1 2 --threads 1 2"),
    "convolutions": Sizes("", "--batch 16", "--only 64x256x256 128x256x128"),
    "attention": Sizes(None, None, None),
    "patterns": Sizes("", "--dtype bfloat16", "--heads 2"),
    "text_lengths": Sizes("", "--batch 512 --micro-batch 128 --dtype bfloat16", None),
    "together": Sizes("", "--runs 1 12 --dtype bfloat16", "--runs 3"),
    "cache": Sizes("", "", ""),
    "memory": Sizes("", None, "--only losses"),
    "data": Sizes("", "", "--sizes 400x300 --streams 0x1 0x2 --batch_size 128 --seconds 3"),
    "data sources": Sizes("--sources", "--sources", None),
    "data scales": Sizes("--scales", "--scales", "--scales"),
    "tar_index": Sizes("", "", "--tars 20 --samples 1000"),
    "index": Sizes("", "", "--images 1000"),
    "precision": Sizes("", "", "--updates 100"),
    "quantizers": Sizes("", "", None),
    "composition": Sizes("", "", None),
}  # fmt: skip


def main() -> None:
    names = sorted({name.partition(" ")[0] for name in BENCHMARKS})
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes: minutes on two cores")
    parser.add_argument("--only", nargs="+", choices=["accelerator", *names], help="run only these")
    arguments = parser.parse_args()
    device, _ = accelerator.describe()
    kind = "quick" if arguments.quick else "cpu" if device.name == device.host else "accelerator"
    chosen = {name: argv for name, sizes in BENCHMARKS.items() if (argv := getattr(sizes, kind)) is not None}
    if device.name != device.host:
        chosen = {"accelerator": ""} | chosen
    if arguments.only:
        chosen = {name: argv for name, argv in chosen.items() if name.partition(" ")[0] in arguments.only}
        if missing := set(arguments.only) - {name.partition(" ")[0] for name in chosen}:
            called = f"python -m benchmarks.{min(missing)}"
            parser.error(f"--only {' '.join(sorted(missing))}: not measured in {kind} sizes; call it by name, {called}")
    failures = []
    for name, argv in chosen.items():
        module = name.partition(" ")[0]
        print(f"\n== python -m benchmarks.{module} {argv}".rstrip(), flush=True)
        seconds, problem = runner.run(module, argv.split())
        print(f"{seconds:.0f} s {problem}", flush=True)
        failures += [f"{name}: {problem}"] if problem else []
    report.write(sorted(results.FOLDER.glob("*.json")), report.FILE)
    if failures:
        sys.exit("failed: " + "; ".join(failures))


if __name__ == "__main__":
    main()
