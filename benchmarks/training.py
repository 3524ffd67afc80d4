"""Measures updates by the trainer's step at growing batch sizes, with random weights and data, and traces the fastest.

    python -m benchmarks.training --config clip/vit_b32 [--dtype bfloat16] [--batch 1024] [--doublings 2] [--remat dots]

The batch is doubled until the compiler's plan does not fit the free memory, or an example takes no less time than before. It
is halved if the first one does not fit. FLOPs of transformers are computed in closed form, without recomputation; FLOPs of
VQGAN are counted in the traced program. MFU is relative to the device's bfloat16 peak, also in float32.
"""

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks import synthetic
from benchmarks.command import main, positive
from benchmarks.flops import count_flops
from benchmarks.kernels import kernel_rows
from benchmarks.results import Row
from benchmarks.timing import flops_rows, rate_row, round_up_to_devices, size_row, time_call, time_row
from train_jax import memory, prepare, profiling, sharding
from train_jax import task as task_lib
from train_jax.step import StatePlan

GAIN = 1.02  # a larger batch is better if it is faster by this factor


@dataclasses.dataclass(frozen=True)
class Step:
    """Compiled training step for one batch size.

    Attributes:
      size: global batch size.
      flops: FLOPs of an update.
      error: why it could not be compiled; "": it could.
    """

    size: int
    flops: float
    compile_seconds: float
    program: jax.stages.Compiled | None
    memory: profiling.MemoryPlan | None
    error: str = ""


class Training:
    """The trainer's step of a shipped config on random batches.

    Args:
      family: "clip", "vqgan", "dalle" or "prior".
      devices: devices of the mesh; None: all.
    """

    def __init__(
        self, family: str, config: str, dtype: str, remat: str, folder: Path, tiny: bool = False,
        devices: Sequence[jax.Device] | None = None,
    ):  # fmt: skip
        self.family, self.grid = family, 4 if tiny else 16
        self.config = synthetic.make_config(family, config, dtype, 8, remat, folder, tiny)
        self.task = task_lib.module(self.config).make(self.config, folder)
        self.mesh = sharding.make_mesh(self.config.mesh, devices)
        self.plan: StatePlan | None = None

    def compile(self, sizes: Sequence[int]) -> list[Step]:
        """Compiles the steps of several batch sizes at the same time."""
        traced = [self._trace(size) for size in sizes]
        with ThreadPoolExecutor(len(sizes)) as pool:
            return list(pool.map(self._compile, sizes, traced))

    def _trace(self, size: int) -> Any:
        config = copy.deepcopy(self.config)
        config.data.batch_size = size
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self._sample(size).items()}
        self.plan, traced = prepare.trace_step(config, self.task, self.mesh, batch, {})
        return traced

    def _compile(self, size: int, traced: Any) -> Step:
        begun = time.perf_counter()
        flops = self.task.flops * size if self.task.flops else count_flops(traced.jaxpr)
        try:
            with jax.set_mesh(self.mesh):
                program = traced.lower().compile()
        except Exception as error:  # compilers raise various classes if memory is exceeded
            message = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return Step(size, flops, time.perf_counter() - begun, None, None, message)
        return Step(size, flops, time.perf_counter() - begun, program, profiling.memory_plan(program))

    def _sample(self, size: int) -> dict[str, Any]:
        config = copy.deepcopy(self.config)
        config.data.batch_size = size
        return synthetic.make_batch(self.family, config, self.grid)

    def make_update(self, step: Step, state: Any) -> Callable[[], Any]:
        """Returns a function that makes one update and returns its metrics. The state is in `state[0]`, and is replaced."""
        batch = jax.device_put(self._sample(step.size), sharding.batch_sharding(self.mesh))

        def update():
            with jax.set_mesh(self.mesh):
                state[0], metrics = step.program(state[0], batch)
            return metrics

        return update

    def create_state(self) -> list[Any]:
        """Creates the initial state, in a list that `make_update` takes."""
        with jax.set_mesh(self.mesh):
            return [self.plan.create()]

    def find_obstacle(self, step: Step, free: int | None) -> str:
        """Returns why a step cannot run in `free` bytes of memory (None: unknown), or ""."""
        if step.error or free is None or step.memory.needed <= free:
            return step.error
        return f"does not fit: needs {step.memory.needed / 2**30:.1f} of {free / 2**30:.1f} GiB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="shipped config, such as clip/vit_b32")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=positive, default=64, help="the first batch size, rounded up for the devices")
    parser.add_argument("--doublings", type=positive, default=2, help="how often the batch size is doubled at most")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--tiny", action="store_true", help="use toy models and batches of 4, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    name, dtype, remat = arguments.config, arguments.dtype, arguments.remat
    family = "prior" if name.startswith("vqgan/prior") else name.partition("/")[0]
    settings = {"config": name, "dtype": dtype, "remat": remat}
    with tempfile.TemporaryDirectory() as folder:
        training = Training(family, name, dtype, remat, Path(folder), arguments.tiny)
        first = round_up_to_devices(4 if arguments.tiny else arguments.batch)
        steps = training.compile([first * 2**i for i in range(arguments.doublings + 1)])
        yield Row("parameters", sum(x.size for x in jax.tree.leaves(training.plan.abstract.params)), "", settings)
        free = memory.free_bytes(jax.local_devices()[0])
        while (obstacle := training.find_obstacle(steps[0], free)) and steps[0].size > training.mesh.size:
            yield Row("examples", None, "a second", settings | {"batch": steps[0].size}, note=obstacle)
            steps = training.compile([round_up_to_devices(steps[0].size // 2)])
        state, best, fastest = training.create_state(), None, float("inf")
        for step in steps:
            at = settings | {"batch": step.size}
            if obstacle := training.find_obstacle(step, free):
                yield Row("examples", None, "a second", at, note=obstacle)
                break
            update = training.make_update(step, state)
            seconds = time_call(update)
            note = "the loss is not finite" if float(update()["skipped"]) else ""
            yield rate_row("examples", seconds, step.size, "a second", at, note=note)
            yield time_row("update", seconds, at)
            yield from flops_rows("update", seconds, step.flops, at)
            yield size_row("planned memory of a device", step.memory.needed, at)
            yield Row("compilation", step.compile_seconds, "s", at)
            cost = statistics.median(seconds) / step.size
            if cost * GAIN > fastest:
                break
            best, fastest = step, cost
        if best is not None:
            yield Row("best batch", best.size, "examples", settings)
            update = training.make_update(best, state)
            yield from kernel_rows("kernels of an update", update, settings | {"batch": best.size})


if __name__ == "__main__":
    main(rows, add_arguments)
