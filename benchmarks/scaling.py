"""Measures step time and memory against batch size and number of devices, and the input pipeline against the step.

    python -m benchmarks.scaling [--families clip vqgan dalle] [--batches 16 32 64 128] [--devices 1 2 4 8] [--threads 1 2]
    python -m benchmarks.scaling --published                                  (published sizes in bfloat16, on accelerators)

Each family trains on one device with every batch size, and with the largest one on every number of devices that there are.
On a CPU the devices are fake and share its cores, so that time tells what splitting costs and not what it gains. Memory is
that of one device, as the compiler plans it. The input pipeline makes the examples of the demo's data in this process, by
number of threads. (DALL-E's data are codes, which need no work.)
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from benchmarks import load_config, runner
from benchmarks.command import main, positive
from benchmarks.results import Row
from benchmarks.timing import rate_row, size_row, time_call, time_in_turns, time_row
from benchmarks.training import Training
from train_jax import config as config_lib
from train_jax import memory
from train_jax import task as task_lib
from train_jax.data import sources
from train_jax.data.stream import TrainStream

DEMO = {"clip": "clip/demo", "vqgan": "vqgan/demo", "dalle": "dalle/demo"}
PUBLISHED = {"clip": "clip/vit_b32", "vqgan": "vqgan/f16_1024", "dalle": "dalle/mindalle_1b3"}
BATCHES = {"clip": (256, 512, 1024), "vqgan": (8, 16, 32), "dalle": (16, 32, 64)}  # of published configs
REMAT = {"clip": "dots", "vqgan": "none", "dalle": "full"}  # of published configs
PIPELINES = ("clip", "vqgan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--families", nargs="+", default=list(DEMO), choices=DEMO)
    parser.add_argument("--published", action="store_true", help="published configs in bfloat16 instead of the demo's")
    parser.add_argument("--batches", nargs="+", type=positive, help="global batch sizes (default 16 32 64 128)")
    parser.add_argument("--devices", nargs="+", type=positive, default=[1, 2, 4, 8])
    parser.add_argument("--threads", nargs="+", type=positive, default=[*range(1, (os.cpu_count() or 1) + 1)])
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # family, devices and batches, measured by this process


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.one:
        family, devices, *batches = arguments.one
        for measured in measure_steps(family, int(devices), [int(x) for x in batches], arguments.published):
            print(json.dumps(measured), flush=True)
        return
    platform, present = runner.call_in_process(_count_devices)
    for family in arguments.families:
        config = (PUBLISHED if arguments.published else DEMO)[family]
        batches = arguments.batches or (BATCHES[family] if arguments.published else (16, 32, 64, 128))
        consumed = None
        for devices in [n for n in arguments.devices if platform == "cpu" or n <= present]:
            for measured in _measure_in_subprocess(family, devices, batches if devices == 1 else batches[-1:], arguments):
                kind = "fake CPU devices" if platform == "cpu" else "devices"
                settings = {"config": config, kind: devices, "batch": measured["batch"]}
                if measured["obstacle"]:
                    yield Row("update", None, "ms", settings, note=measured["obstacle"])
                    continue
                row = rate_row("examples", measured["seconds"], measured["batch"], "a second", settings)
                yield from (time_row("update", measured["seconds"], settings), row)
                yield size_row("planned memory of a device", measured["memory"], settings)
                consumed = row if devices == 1 else consumed
        if family in PIPELINES and consumed:
            yield from compare_pipeline(family, consumed, arguments.threads)


def _count_devices() -> tuple[str, int]:
    return jax.devices()[0].platform, jax.device_count()


def _measure_in_subprocess(family: str, devices: int, batches, arguments: argparse.Namespace) -> Iterator[dict]:
    """Runs `measure_steps` in a process of its own, on a CPU with as many fake devices."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--one", family, str(devices), *map(str, batches)]
    command += ["--published"] * arguments.published
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip()}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    yield from map(json.loads, output.splitlines())


def measure_steps(family: str, devices: int, batches: list[int], published: bool) -> Iterator[dict]:
    """Measures updates on the first `devices` at each batch size: seconds of the turns, memory, or an obstacle."""
    name, dtype = (PUBLISHED[family], "bfloat16") if published else (DEMO[family], "float32")
    remat = REMAT[family] if published else "none"
    with tempfile.TemporaryDirectory() as folder:
        training = Training(family, name, dtype, remat, Path(folder), devices=jax.devices()[:devices])
        steps = training.compile(batches)
        state, free = training.create_state(), memory.free_bytes(jax.local_devices()[0])
        for step in steps:
            row = {"batch": step.size, "obstacle": training.find_obstacle(step, free)}
            if not row["obstacle"]:
                row |= {"seconds": time_call(training.make_update(step, state)), "memory": step.memory.needed}
            yield row


def compare_pipeline(family: str, consumed: Row, threads: list[int]) -> Iterator[Row]:
    """Measures examples a second of the demo's input pipeline, and how many times as many they are as a step consumes."""
    config = config_lib.resolve(load_config(DEMO[family]))
    task = task_lib.module(config).make(config, None)
    source, size = sources.open_source(config.data.source, config.data.split), config.data.batch_size
    for count in threads:
        stream = TrainStream(source, task.example, batch_size=size, seed=0, threads=count)
        (seconds,) = time_in_turns({"pipeline": lambda s=stream: [next(s) for _ in range(-(-1024 // size))]}, 3).values()
        settings = {"pipeline of": DEMO[family], "threads": count}
        made = rate_row("examples", seconds, -(-1024 // size) * size, "a second", settings)
        yield made
        of = f"{consumed.settings['config']}, batch {consumed.settings['batch']}"
        yield Row("pipeline / step", made.value / consumed.value, "times", settings | {"step of": of})


if __name__ == "__main__":
    main(rows, add_arguments)
