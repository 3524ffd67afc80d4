"""Free memory of devices, and an error for programs that need more, before the system kills the process."""

from collections.abc import Callable
from pathlib import Path

import jax

from train_jax.errors import ConfigError

_MEMORY = Path("/proc/meminfo")
_LIMIT, _USED, _PARTS = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
_CACHE = ("inactive_file", "active_file")  # page cache, which the system can reclaim


def free_bytes(device: jax.Device) -> int | None:
    """Returns the free memory of a device in bytes; None if neither device nor system reports it.

    CPU devices share the memory of the machine in equal parts.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not _MEMORY.is_file():
        return None
    available = next(int(line.split()[1]) for line in _MEMORY.read_text().splitlines() if line.startswith("MemAvailable"))
    free_memory = 1024 * available
    if _LIMIT.is_file() and (limit := _LIMIT.read_text().strip()) != "max":  # of a container
        parts = dict(line.split() for line in _PARTS.read_text().splitlines())
        used = int(_USED.read_text()) - sum(int(parts[name]) for name in _CACHE)
        free_memory = min(free_memory, int(limit) - used)
    return free_memory // jax.local_device_count()


def require(needed: int, device: jax.Device, what: str, remedy: str) -> None:
    """Raises ConfigError if a device has fewer than `needed` bytes of free memory.

    Args:
      what: subject and verb of the message, such as "the step takes".
      remedy: advice at the end of the message.
    """
    free_memory = free_bytes(device)
    if free_memory is not None and needed > free_memory:
        raise ConfigError(
            f"{what} {needed / 2**30:.1f} GiB per device, and {max(free_memory, 0) / 2**30:.1f} GiB are free: {remedy}"
        )


def largest_array(function: Callable, *arguments) -> int:
    """Returns the size in bytes of the largest intermediate array of a function, by abstract evaluation.

    Args:
      arguments: arrays or ShapeDtypeStructs.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return max(x.aval.size * x.aval.dtype.itemsize for equation in jaxpr.eqns for x in equation.outvars)
