"""Cost of a training step: analytic FLOPs, model FLOPs utilisation, memory plan, traces.

FLOPs are computed by formula, since XLA's cost analysis counts the body of a `scan` once and is per device. A
multiplication and an addition are two operations. A backward pass costs twice as much as a forward pass.
"""

import contextlib
import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from train_jax import paths

BACKWARD = 3  # cost of a forward and a backward pass, relative to a forward pass

# Dense peak rates in FLOP/s with bfloat16 inputs and float32 accumulation, without sparsity. Sources:
# cloud.google.com/tpu/docs (TPU) and the NVIDIA data sheet of each card. Keys are prefixes of JAX's `device_kind`.
PEAKS = {
    "TPU v2": 22.5e12,  # per core, which is a JAX device; a chip has two
    "TPU v3": 61.5e12,  # per core
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # per core; a chip has two
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "Tesla T4": 65e12,  # float16; it has no bfloat16
    "Tesla V100": 125e12,  # float16
}

# Peak bandwidths of the memory in bytes/s, by the same sources and keys.
BANDWIDTHS = {
    "TPU v4 lite": 0.614e12,
    "TPU v4": 1.2e12,
    "TPU v5 lite": 0.819e12,
    "TPU v5e": 0.819e12,
    "TPU v5p": 2.765e12,
    "TPU v5": 2.765e12,
    "TPU v6 lite": 1.64e12,
    "TPU v6e": 1.64e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H100 NVL": 3.9e12,
    "NVIDIA H100": 3.35e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA A100 80GB PCIe": 1.935e12,
}


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Returns the total peak rate of matrix products of the devices in FLOP/s; None for an unknown kind of device.

    For accelerators this is the bfloat16 rate, independent of the dtype of the model. For CPUs it is the measured rate of
    a large float32 product; fake devices share it. The measurement runs a program on one device, so call this function
    outside of any `jax.set_mesh`.
    """
    if devices[0].platform == "cpu":
        return _measured_cpu_peak() * len({device.process_index for device in devices})
    peak = peak_of_kind(devices[0].device_kind)
    return None if peak is None else peak * len(devices)


def peak_of_kind(device_kind: str) -> float | None:
    """Returns the peak rate of a device kind from `PEAKS`, in FLOP/s; None for an unknown kind."""
    return _find_longest_prefix(PEAKS, device_kind)


def bandwidth_of_kind(device_kind: str) -> float | None:
    """Returns the peak bandwidth of the memory of a device kind from `BANDWIDTHS`, in bytes/s; None for an unknown kind."""
    return _find_longest_prefix(BANDWIDTHS, device_kind)


def _find_longest_prefix(table: Mapping[str, float], device_kind: str) -> float | None:
    matches = [name for name in table if device_kind.startswith(name)]
    return table[max(matches, key=len)] if matches else None


@functools.cache
def _measured_cpu_peak() -> float:
    """Measures the rate of a large float32 product on one CPU device, in FLOP/s."""
    n = 1536
    x = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32), device=jax.local_devices()[0])
    multiply = jax.jit(lambda a: a @ a)
    multiply(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Computes model FLOPs utilisation (MFU; arXiv 2204.02311, appendix B).

    Args:
      flops: FLOPs of a step.
      seconds: duration of the step.
      peak: total peak rate of the devices, in FLOP/s.
    """
    return flops / (seconds * peak)


class ThroughputMeter:
    """Meter for steps per second, examples per second and MFU since the last reading, without the time in `paused`."""

    def __init__(self, batch_size: int, flops: float | None, peak: float | None, step: int):
        self._batch_size = batch_size
        self._flops, self._peak = flops, peak
        self._step = step
        self._since = time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        """Returns the throughput since the last reading, as metrics, and starts a new measurement."""
        now = time.perf_counter()
        seconds = (now - self._since) / (step - self._step)
        self._since, self._step = now, step
        speed = {"steps_per_second": 1 / seconds, "examples_per_second": self._batch_size / seconds}
        if self._flops is not None and self._peak is not None:
            speed["mfu"] = mfu(self._flops, seconds, self._peak)
        return speed

    @contextlib.contextmanager
    def paused(self):
        """Excludes the duration of the enclosed code from the measurement."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start


def dense_flops(rows: int, inputs: int, outputs: int) -> int:
    """Returns the FLOPs of a matrix product [rows, inputs] x [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def conv_flops(height: int, width: int, kernel: int, inputs: int, outputs: int) -> int:
    """Returns the FLOPs of a convolution with a `kernel` x `kernel` window and an output of `height` x `width`."""
    return 2 * height * width * kernel**2 * inputs * outputs


def transformer_flops(
    length: int,
    width: int,
    depth: int,
    mlp_ratio: float = 4.0,
    gated: bool = False,
    context: int = 0,
    kv_share: float = 1.0,
) -> int:
    """Returns the FLOPs of `depth` transformer blocks on `length` tokens, which cross-attend to `context` tokens if any.

    Counts projections, full attention (a causal mask saves nothing) and MLP, which has a third product if `gated`. Keys and
    values have `kv_share` times the heads of queries.
    """
    projections = dense_flops(length, width, round((2 + 2 * kv_share) * width))
    attention = 2 * dense_flops(length, width, length)
    mlp = (3 if gated else 2) * dense_flops(length, width, round(mlp_ratio * width))
    cross = dense_flops(length + context, width, 2 * width) + 2 * dense_flops(length, width, context) if context else 0
    return depth * (projections + attention + mlp + cross)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Memory use of a compiled program per device, in bytes."""

    arguments: int
    outputs: int
    aliased: int  # outputs that reuse the memory of donated arguments
    temporaries: int
    code: int
    peak: int | None  # peak memory as scheduled by the compiler; None if not reported (CPU)

    @property
    def total(self) -> int:
        """Sum of all parts, without aliased outputs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    @property
    def needed(self) -> int:
        """Required memory: the peak, or the total if the compiler reports no peak."""
        return self.total if self.peak is None else self.peak

    def __str__(self) -> str:
        rows = dataclasses.asdict(self) | {"total": self.total}
        return "\n".join(f"  {name:<12}{size / 2**20:>12,.1f} MiB" for name, size in rows.items() if size is not None)


def memory_plan(compiled: jax.stages.Compiled) -> MemoryPlan:
    """Reads the memory plan of a compiled program, from `jax.jit(f).lower(…).compile()`."""
    analysis = compiled.memory_analysis()
    # On a CPU the reported peak does not contain temporaries.
    device = next(iter(jax.tree.leaves(compiled.output_shardings)[0].device_set))
    return MemoryPlan(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        peak=None if device.platform == "cpu" else getattr(analysis, "peak_memory_in_bytes", None),
    )


@contextlib.contextmanager
def trace(directory: str | os.PathLike) -> Iterator[None]:
    """Records a profiler trace of the enclosed code, for TensorBoard's profile tab or ui.perfetto.dev."""
    target = paths.path(directory)
    with contextlib.nullcontext(target) if isinstance(target, Path) else tempfile.TemporaryDirectory() as local:
        jax.profiler.start_trace(str(local), create_perfetto_trace=True)
        try:
            yield
        finally:
            jax.profiler.stop_trace()
            if target != local:
                paths.copy(Path(local), target)
