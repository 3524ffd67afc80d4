"""Free memory of devices; programs that would take more are refused before the system ends the process."""

from collections.abc import Callable
from pathlib import Path

import jax

from train_jax.errors import ConfigError

_MEMORY = Path("/proc/meminfo")
_LIMIT, _USED, _PARTS = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
_CACHE = ("inactive_file", "active_file")  # pages of files, which the system gives back


def free(device: jax.Device) -> int | None:
    """Returns the bytes that programs may still take on a device; None if neither device nor system reports them.

    The devices of a CPU share its memory, each a part of the same size.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not _MEMORY.is_file():
        return None
    available = next(int(line.split()[1]) for line in _MEMORY.read_text().splitlines() if line.startswith("MemAvailable"))
    left = 1024 * available
    if _LIMIT.is_file() and (limit := _LIMIT.read_text().strip()) != "max":  # of a container
        parts = dict(line.split() for line in _PARTS.read_text().splitlines())
        used = int(_USED.read_text()) - sum(int(parts[name]) for name in _CACHE)
        left = min(left, int(limit) - used)
    return left // jax.local_device_count()


def require(needed: int, device: jax.Device, what: str, remedy: str) -> None:
    """Raises ConfigError if a device has fewer than `needed` bytes left; `what` and `remedy` are for the message."""
    left = free(device)
    if left is not None and needed > left:
        raise ConfigError(
            f"{what} {needed / 2**30:.1f} GiB a device, and {max(left, 0) / 2**30:.1f} GiB are free: {remedy}"
        )


def largest_array(function: Callable, *arguments) -> int:
    """Returns the bytes of the largest intermediate array of a function of arrays or ShapeDtypeStructs; computes
    nothing.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return max(x.aval.size * x.aval.dtype.itemsize for equation in jaxpr.eqns for x in equation.outvars)
