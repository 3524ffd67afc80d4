"""Initialisation of `jax.distributed` for several hosts, from a cluster that JAX detects or from flags."""

import os

import jax
from jax._src.clusters import ClusterEnv  # JAX's cluster detection has no public name

from train_jax.errors import ConfigError

MODES = ("auto", "on", "off")
_MPI = ("PMI_SIZE", "MPI_WORLD_SIZE")  # number of processes, as set by launchers of MPICH; JAX supports these through mpi4py


def initialize(
    coordinator: str | None = None, processes: int | None = None, index: int | None = None, *, mode: str = "auto"
) -> None:
    """Connects this process with the other processes of its job. Call this before any other function of JAX.

    JAX detects TPU VMs (by their metadata), Slurm, Open MPI, Kubernetes, and, with mpi4py, other MPIs.

    Args:
      coordinator: `host:port` of process 0. `coordinator`, `processes` and `index` together override the detection.
      processes: number of processes.
      index: index of this process.
      mode: "auto": connects if a cluster is detected; "on": raises ConfigError if none is detected; "off": trains on this
        host alone.

    Raises ConfigError if only some of `coordinator`, `processes` and `index` are given, if they are combined with "off",
    or if the other processes cannot be reached.
    """
    stated = [x is not None for x in (coordinator, processes, index)]
    if mode not in MODES:
        raise ConfigError(f"--distributed={mode}: it must be {', '.join(MODES)}")
    if any(stated) and not all(stated):
        raise ConfigError(
            f"--coordinator={coordinator} --processes={processes} --process_index={index}: give all three, or none "
            "on a cluster that JAX recognises (TPU VMs, Slurm, Open MPI, Kubernetes)"
        )
    if mode == "off":
        if any(stated):
            raise ConfigError("--distributed=off and --coordinator exclude each other: leave one of them out")
        return
    try:
        if all(stated):
            jax.distributed.initialize(coordinator, processes, index)
            return
        cluster = _detect_cluster()
        if cluster is not None:
            jax.distributed.initialize(cluster_detection_method=cluster.name if cluster.opt_in_only_method else None)
        elif mode == "on":
            raise ConfigError(
                "--distributed=on: JAX recognises no cluster of several processes here (TPU VMs, Slurm, Open MPI, "
                "Kubernetes). Give --coordinator, --processes and --process_index, or leave --distributed out"
            )
    except ConfigError:
        raise
    except Exception as error:  # error types differ between clusters (metadata server, variables, packages)
        raise ConfigError(
            f"the other processes of this job cannot be joined ({type(error).__name__}: {error}). Name them by "
            "--coordinator, --processes and --process_index, or train on this host alone with --distributed=off"
        ) from error


def _detect_cluster() -> type[ClusterEnv] | None:
    """Detects the cluster that started this process; returns None if the process is the only one.

    With jax.distributed, a single process would use only one of the host's GPUs.
    """
    mpi = any(int(os.environ.get(name) or 1) > 1 for name in _MPI)
    for cluster in ClusterEnv._cluster_types:
        if (mpi or not cluster.opt_in_only_method) and cluster.is_env_present():
            return cluster if cluster.get_process_count() > 1 else None
    if mpi:
        raise ConfigError(
            "MPI started this process as one of several, and JAX asks MPI through mpi4py, which is not installed: pip "
            "install mpi4py; or give --coordinator, --processes and --process_index, or --distributed=off"
        )
    return None
