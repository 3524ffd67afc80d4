"""Measures everything worth knowing of an accelerator in one call of less than nine minutes, the most important first.

    python -m benchmarks.accelerator [--minutes 8.5] [--only training sampling] [--results FOLDER]
    python -m benchmarks.accelerator --tiny                          (toy models, also on a CPU: tests the benchmark)

Each part is another benchmark and runs in a process of its own, so that peak memory is per part, and a part that fails ends
no other. Rows are stored at once. A part that does not fit into the time that is left is skipped, and one that is not ready
when time is up is cut off: the rows of this benchmark, one for each part, tell so. It is then run alone by its command.
"""

import argparse
import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator

from benchmarks import command, results, runner
from benchmarks.results import Row
from train_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """Benchmark with arguments.

    Attributes:
      seconds: expected duration on an H100 or H200, compilation included.
      tiny: further arguments of the test with toy models; None: the part is like another there, and left out.
      needs: package without which the part is skipped.
    """

    module: str
    arguments: str
    seconds: float
    tiny: str | None = ""
    needs: str = ""


PARTS = (  # batch sizes are those from which an 80 GB card's fastest is searched
    Part("ceilings", "", 20),
    Part("parity", "", 65),
    Part("training", "--config clip/vit_b32 --remat dots --batch 1024", 90, tiny="--doublings 1"),
    Part("training", "--config dalle/mindalle_1b3 --remat full --batch 64 --doublings 1", 60, tiny="--doublings 0"),
    Part("sampling", "--model 1b3", 135, tiny="--bandwidth 10"),
    Part("training", "--config vqgan/f16_1024 --batch 32 --doublings 0", 200, tiny="--doublings 0"),
    Part("painting_speed", "", 95),
    Part("clip", "--batch 256 --dtype bfloat16", 170, tiny="--batch 2 --rounds 1", needs="torch"),
    Part("dalle", "--models 1b3 --batches 16 --dtype bfloat16", 120, tiny="--batches 2 --codes 4 --rounds 1", needs="torch"),
    Part("vqgan", "--batch 8 --dtype bfloat16", 80, tiny="--batch 1 --rounds 1", needs="torch"),
    Part("together", "--runs 1 12", 50, tiny="--runs 2"),
    Part("training", "--config clip/vit_b16 --remat dots --batch 512 --doublings 1", 75, tiny=None),
    Part("attention", "", 60),
    Part("training", "--config vqgan/prior_digits --batch 64 --doublings 1", 60, tiny=None),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=8.5, help="time after which nothing runs any more (default 8.5)")
    parser.add_argument("--only", nargs="+", choices=sorted({part.module for part in PARTS}), help="parts of these modules")
    parser.add_argument("--tiny", action="store_true", help="use toy models, to test the benchmark")


def describe(commit: str = "") -> tuple[results.Device, results.Run]:
    """Describes device and conditions without initialising the device in this process, which the parts need."""
    return runner.call_in_process(results.describe, commit)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    deadline = time.monotonic() + 60 * arguments.minutes
    device, _ = describe()
    if device.name == device.host and not arguments.tiny:
        raise UserError(f"no accelerator here, only {device.name}: --tiny tests this benchmark, make bench measures CPUs")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    runner.import_all(sorted({part.module for part in PARTS}))  # a missing package costs no time of the device
    shared = [f"--commit={arguments.commit}", *([f"--results={arguments.results}"] if arguments.results else [])]
    failures = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)  # parts share the programs that initialise weights
        for part in PARTS:
            if (arguments.only and part.module not in arguments.only) or (arguments.tiny and part.tiny is None):
                continue
            name, left = f"{part.module} {part.arguments}".strip(), deadline - time.monotonic()
            if part.needs and not importlib.util.find_spec(part.needs):
                yield Row(name, None, "s", note=f"skipped: {part.needs} is not installed")
            elif left < (1 if arguments.tiny else part.seconds):
                note = f"skipped: takes about {part.seconds:.0f} s, and {max(left, 0):.0f} s are left"
                yield Row(name, None, "s", note=note)
            else:
                argv = [*part.arguments.split(), *shared]
                argv += ["--tiny", *part.tiny.split()] if arguments.tiny else []
                seconds, problem = runner.run(part.module, argv, left)
                failures += [name] if problem.startswith("ended") else []
                yield Row(name, None if problem else seconds, "s", note=problem and f"{problem} after {seconds:.0f} s")
    if failures:
        raise SystemExit(f"failed: {'; '.join(failures)}")


if __name__ == "__main__":
    command.main(rows, add_arguments, describe=describe)
