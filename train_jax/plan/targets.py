"""Devices that programs are compiled for and that need not be present: TPU slices, NVIDIA GPUs, fake CPU devices."""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax

from train_jax.errors import ConfigError
from train_jax.profiling import bandwidth_of_kind, peak_of_kind

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data of one device.

    Attributes:
      kind: JAX's `device_kind`, by which `train_jax.profiling` knows its peaks; "" for a fake device.
      memory: usable memory in bytes; 0: unknown.
      clock: cycles per second, in which the compiler estimates the time of a TPU's operations; 0: no estimates.
    """

    kind: str = ""
    memory: int = 0
    clock: float = 0.0

    @property
    def bandwidth(self) -> float | None:
        """Peak bandwidth of the memory, in bytes/s; None: unknown."""
        return bandwidth_of_kind(self.kind)

    @property
    def peak_flops(self) -> float | None:
        """Peak bfloat16 rate, in FLOP/s; None: unknown."""
        return peak_of_kind(self.kind)


# Memory as the compiler reports it; with these clocks the matrix units of a TPU reach the peak rate.
_TPUS = {
    "v4": Chip("TPU v4", 31 * GIB, 1.05e9),
    "v5e": Chip("TPU v5e", int(15.75 * GIB), 1.5e9),
    "v5p": Chip("TPU v5p", 95 * GIB, 1.75e9),
    "v6e": Chip("TPU v6e", int(31.25 * GIB), 1.75e9),
}
_GPUS = {"h100": Chip("NVIDIA H100", 79 * GIB)}

# What XLA's compiler needs to know of a GPU that is not present (a text proto `GpuTargetConfig`).
_H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_PROTOS = {"h100": _H100}

GPU_PACKAGES = "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cudnn-cu12"
EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:16x16 (TPU slices), h100:8 (GPUs of one host), h100:4x8 (of four hosts), fake:8 (CPU)"


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: name on the command line, such as "v5e:4x4".
      kind: name of the chip, "h100", "v5e" or "fake".
      shape: topology of a TPU slice; hosts and devices per host of GPUs; number of fake devices.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Target":
        """Parses the name of a target. Raises ConfigError that lists the kinds for any other."""
        kinds = (*_TPUS, *_GPUS, "fake")
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
        if not match or match[1] not in kinds or 0 in (shape := tuple(map(int, match[2].split("x")))):
            raise ConfigError(f"--target {name!r} must be CHIP:SHAPE with a chip of {', '.join(kinds)}: {EXAMPLES}")
        dimensions = {"fake": (1,), **dict.fromkeys(_GPUS, (1, 2))}.get(match[1], (2, 3))
        if len(shape) not in dimensions:
            allowed = " or ".join(map(str, dimensions))
            raise ConfigError(f"--target {name!r}: {match[1]} has a shape of {allowed} number(s): {EXAMPLES}")
        return cls(name, match[1], shape)

    @property
    def chip(self) -> Chip:
        """Data of one device; zeros for a fake device."""
        return (_TPUS | _GPUS).get(self.kind, Chip())

    def set_environment(self) -> None:
        """Sets what the compilers read from the environment. Must be called before JAX initialises its devices."""
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["JAX_PLATFORMS"] = "cpu"  # a GPU that is present would be initialised, too
        if self.kind in _TPUS:
            os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # asks no metadata server which TPU this is
        elif self.kind in _GPUS:
            os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
            flags += " --xla_gpu_autotune_level=0"  # there is no card to measure kernels on
        else:
            flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
            flags += f" --xla_force_host_platform_device_count={self.shape[0]}"
        os.environ["XLA_FLAGS"] = flags.strip()
        jax.config.update("jax_platforms", "cpu")

    def devices(self) -> Sequence[jax.Device]:
        """Returns the devices, which compile but do not run. Raises ConfigError if their compiler is not installed."""
        from jax.experimental import topologies

        if self.kind == "fake":
            return jax.devices("cpu")[: self.shape[0]]
        try:
            if self.kind in _TPUS:
                topology = "x".join(map(str, self.shape))
                described = topologies.get_topology_desc(platform="tpu", topology_name=f"{self.kind}:{topology}")
            else:
                hosts, devices = (1, *self.shape)[-2:]
                described = topologies.get_topology_desc(
                    platform="cuda", target_config=_PROTOS[self.kind], topology=f"1x{hosts}x{devices}"
                )
        except Exception as error:  # JAX and the compilers raise various classes
            package = "'jax[tpu]'" if self.kind in _TPUS else GPU_PACKAGES
            raise ConfigError(
                f"--target {self.name}: no such devices can be compiled for ({type(error).__name__}: {error}). It needs "
                f"`pip install {package}` in an environment of its own, and a shape that the compiler knows"
            ) from error
        return described.devices
