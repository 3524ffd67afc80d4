"""Times of the kernels of a call, from a trace of JAX's profiler."""

import collections
import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.results import Row

TOP = 5  # kernels that get a row of their own
KINDS = {  # kind of kernel -> pattern of its name; the first match counts
    "attention": "fmha|flash|sdpa",
    "convolutions": "conv(?!ert)|fprop|dgrad|wgrad|implicit",
    "products": "gemm|nvjet|cutlass|cublas|dot",
    "sorts": "sort|topk|radix",
    "reductions": "reduc",
    "copies": "copy|memcpy|memset|transpose|concat|slice|gather|scatter|nchwto|nhwcto",
    "elementwise": "",
}
# Lines of a trace that hold kernels: the streams of a GPU, the operations of a TPU, the threads of XLA on a CPU.
_LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops", "/host:CPU": "tf_XLA"}


def trace_kernels(call: Callable[[], Any]) -> tuple[collections.Counter, collections.Counter]:
    """Traces one call. Returns milliseconds and number of executions by kernel, summed over devices and threads."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        planes = list(jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb")))).planes)
        on_device = any(plane.name.startswith("/device:") for plane in planes)
        milliseconds, counts = collections.Counter(), collections.Counter()
        for plane, (prefix, line_prefix) in itertools.product(planes, _LINES.items()):
            if not plane.name.startswith(prefix) or (on_device and prefix == "/host:CPU"):
                continue
            for line in plane.lines:
                for event in line.events if line.name.startswith(line_prefix) else ():
                    if prefix == "/host:CPU" and ("::" in event.name or event.name.startswith("end: ")):  # marks of threads
                        continue
                    milliseconds[event.name] += event.duration_ns * 1e-6
                    counts[event.name] += 1
    return milliseconds, counts


def kernel_rows(name: str, call: Callable[[], Any], settings: Mapping[str, Any]) -> Iterator[Row]:
    """Yields milliseconds of one call by kind of kernel, and of the longest kernels. On a CPU times of threads add up."""
    milliseconds, counts = trace_kernels(call)
    kinds = collections.Counter()
    for kernel, time in milliseconds.items():
        kinds[next(kind for kind, names in KINDS.items() if re.search(names, kernel.lower()))] += time
    for kind in KINDS:
        yield Row(f"{name}: {kind}", kinds[kind], "ms", dict(settings))
    for rank, (kernel, time) in enumerate(milliseconds.most_common(TOP), 1):
        yield Row(f"{name}: longest {rank}", time, "ms", dict(settings), note=f"{counts[kernel]} x `{kernel[:80]}`")
