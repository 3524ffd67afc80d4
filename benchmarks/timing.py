"""Times of programs: one alone, or contestants in turns; as rows of medians with the least and largest of the rounds."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax

from benchmarks.results import OURS, Row
from train_jax import profiling
from train_jax.sharding import round_up

Key = TypeVar("Key", bound=Hashable)


def time_call(call: Callable[[], Any], turn: float = 0.4) -> list[float]:
    """Measures the seconds of a call in three to five turns, after a warm-up.

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
    return seconds[1:]


def round_up_to_devices(size: int) -> int:
    """Returns the smallest batch of at least `size` rows that the devices of this host share evenly."""
    return round_up(size, jax.local_device_count())


def time_in_turns(contestants: Mapping[Key, Callable[[], Any]], rounds: int) -> dict[Key, list[float]]:
    """Measures the seconds of each contestant in each round. A round runs every contestant once, in turns; one warms up.

    The result of a call is waited for, so that contestants that return no JAX arrays must wait themselves.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in contestants}
    for round_index in range(rounds + 1):
        for name, call in contestants.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            if round_index:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def time_row(name: str, seconds: Sequence[float], settings: Mapping[str, Any], **fields: Any) -> Row:
    """Returns the milliseconds of a call."""
    return _median_row(name, [1e3 * x for x in seconds], "ms", settings, **fields)


def rate_row(
    name: str, seconds: Sequence[float], count: float, unit: str, settings: Mapping[str, Any], **fields: Any
) -> Row:
    """Returns the rate of a call that processes `count` of something."""
    return _median_row(name, [count / x for x in seconds], unit, settings, **fields)


def _median_row(name: str, values: Sequence[float], unit: str, settings: Mapping[str, Any], **fields: Any) -> Row:
    """Returns the median of values, with the least and the largest if there are several."""
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Row(name, statistics.median(values), unit, dict(settings), low, high, len(values), **fields)


def compare_rates(
    name: str, seconds: Mapping[str, Sequence[float]], count: float, unit: str, settings: Mapping[str, Any]
) -> Iterator[Row]:
    """Yields the rates of ours and of peers, those with the ratio of median rates, ours over the peer's."""
    ours = statistics.median(seconds[OURS])
    for by, times in seconds.items():
        ratio = None if by == OURS else statistics.median(times) / ours
        yield rate_row(name, times, count, unit, settings, by=by, ratio=ratio)


def flops_rows(name: str, seconds: Sequence[float], flops: float, settings: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the rate of arithmetic, and MFU if the peak of the devices is known.

    MFU is relative to the peak in bfloat16 of an accelerator, also in float32, and on a CPU to that of a large product.
    """
    yield rate_row(f"{name}: arithmetic", seconds, flops * 1e-12, "TFLOP/s", settings)
    peak = profiling.peak_flops(jax.devices())
    if peak:
        yield rate_row(f"{name}: MFU", seconds, 100 * flops / peak, "%", settings)


def size_row(name: str, size: float, settings: Mapping[str, Any], **fields: Any) -> Row:
    """Returns a size in bytes as MiB."""
    return Row(name, size / 2**20, "MiB", dict(settings), **fields)
