"""Measures programs on the default device: median times, kernel times, MFU, and achievable rates of the device."""

import collections
import functools
import itertools
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from train_jax import profiling

KERNELS = {  # kind of kernel -> pattern of its name; the first match counts
    "attention": "fmha|flash|sdpa",
    "convolutions": "conv(?!ert)|fprop|dgrad|wgrad|implicit",
    "products": "gemm|nvjet|cutlass|cublas|dot",
    "sorts": "sort|topk|radix",
    "reductions": "reduc",
    "copies": "copy|memcpy|memset|transpose|concat|slice|gather|scatter|nchwto|nhwcto",
    "elementwise": "",
}


def median_seconds(call: Callable[[], Any], turn: float = 0.4) -> float:
    """Measures the median seconds of a call over three to five turns, after a warm-up.

    A turn has as many calls as fit into `turn` seconds. The host waits for the device only at the end of a turn.
    """
    jax.block_until_ready(call())
    seconds, calls = [], 1
    while len(seconds) < 6 and (len(seconds) < 4 or sum(seconds) * calls < 8 * turn):
        begun = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - begun) / calls)
        calls = max(1, round(turn / seconds[0]))
    return statistics.median(seconds[1:])


def compute_rates(seconds: float, count: float, flops: float | None) -> dict[str, float]:
    """Computes the rates of a call that processes `count` examples, and MFU if the device's peak is known."""
    row = {"seconds": seconds, "per_second": count / seconds}
    peak = profiling.peak_of_kind(jax.devices()[0].device_kind)
    if flops:
        row["flops_per_second"] = flops / seconds
    return row | ({"mfu": profiling.mfu(flops, seconds, peak)} if flops and peak else {})


def count_flops(jaxpr: Any) -> float:
    """Counts FLOPs of matrix products and convolutions of a (closed) jaxpr, with the largest branch and all loop iterations.

    Zeros between input elements of a convolution (`lhs_dilation`) are not counted; zeros of the padding are counted.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        output = equation.outvars[0].aval.size if equation.outvars else 0
        if name in ("dot_general", "mixed_dot_general"):
            summed, _ = parameters["dimension_numbers"][0]
            total += 2 * output * math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
        elif name == "conv_general_dilated":
            shape, order = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
            window = math.prod(shape[axis] for axis in order[1:])
            total += 2 * output * window / math.prod(parameters["lhs_dilation"])
        else:
            inner = [count_flops(part) for part in jaxprs_in_params(parameters)]
            total += max(inner, default=0) if name == "cond" else sum(inner) * parameters.get("length", 1)
    return total


def count_forward_flops(model: Any, method: str, shape: tuple[int, ...], dtype: Any) -> float:
    """Counts FLOPs of a method of a loaded model (with `module` and `variables`) on an array."""
    apply = functools.partial(model.module.apply, method=method)
    return count_flops(jax.make_jaxpr(apply)(model.variables, jax.ShapeDtypeStruct(shape, dtype)))


def trace_kernels(call: Callable[[], Any]) -> dict[str, Any]:
    """Measures milliseconds of GPU kernels in one traced call, by kind and for the longest kernels; empty on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        planes = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb")))).planes
        lines = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
        times, counts, kinds = collections.Counter(), collections.Counter(), collections.Counter()
        for event in itertools.chain.from_iterable(line.events for line in lines if line.name.startswith("Stream")):
            times[event.name] += event.duration_ns * 1e-6
            counts[event.name] += 1
    for name, milliseconds in times.items():
        kinds[next(kind for kind, names in KERNELS.items() if re.search(names, name.lower()))] += milliseconds
    longest = [(name, round(milliseconds, 3), counts[name]) for name, milliseconds in times.most_common(60)]
    return {"kinds": {kind: round(x, 2) for kind, x in kinds.most_common()}, "kernels": longest} if times else {}


def measure_ceilings(n: int) -> list[dict[str, Any]]:
    """Measures achievable rates: matrix products [n, n] x [n, n], and a copy of 4 n^2 float32 numbers."""
    device, rows = jax.devices()[0], []
    x, y = (jax.random.normal(jax.random.key(i), (4 * n, n)) for i in range(2))
    for dtype in ("bfloat16", "float32"):
        product = functools.partial(jax.jit(jnp.matmul), x[:n].astype(dtype), y[:n].astype(dtype))
        rows.append({"what": f"products of {n}", "dtype": dtype, **compute_rates(median_seconds(product), 1, 2 * n**3)})
    seconds = median_seconds(functools.partial(jax.jit(jnp.copy), x))
    rate = 2 * x.nbytes / seconds
    rows.append({"what": f"a copy: {rate * 1e-9:,.0f} GB/s, read and written", "seconds": seconds, "bytes_per_second": rate})
    return [{"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, **row} for row in rows]
