"""Joins several hosts by `jax.distributed`: in a cluster that JAX recognises, or by flags."""

import os

import jax
from jax._src.clusters import ClusterEnv  # how JAX recognises clusters, for which there is no public name

from train_jax.errors import ConfigError

MODES = ("auto", "on", "off")
_MPI = ("PMI_SIZE", "MPI_WORLD_SIZE")  # processes that MPICH's launchers started; JAX asks them through mpi4py


def initialize(
    coordinator: str | None = None, processes: int | None = None, index: int | None = None, *, mode: str = "auto"
) -> None:
    """Joins this process with the others of its job; to be called before anything else of JAX.

    JAX recognises TPU VMs (by their metadata), Slurm, Open MPI, Kubernetes, and, with mpi4py, other MPIs.

    Args:
      coordinator: `host:port` of process 0; with `processes` and `index` it overrides what the cluster says.
      mode: "auto": joins if there is a cluster; "on": ConfigError if there is none; "off": trains alone.

    ConfigError if only some of the three are given, if they stand beside "off", or if the job's other processes cannot be
    reached.
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
        cluster = _cluster()
        if cluster is not None:
            jax.distributed.initialize(cluster_detection_method=cluster.name if cluster.opt_in_only_method else None)
        elif mode == "on":
            raise ConfigError(
                "--distributed=on: JAX recognises no cluster of several processes here (TPU VMs, Slurm, Open MPI, "
                "Kubernetes). Give --coordinator, --processes and --process_index, or leave --distributed out"
            )
    except ConfigError:
        raise
    except Exception as error:  # each cluster's own: of its metadata server, its variables, its packages
        raise ConfigError(
            f"the other processes of this job cannot be joined ({type(error).__name__}: {error}). Name them by "
            "--coordinator, --processes and --process_index, or train on this host alone with --distributed=off"
        ) from error


def _cluster() -> type[ClusterEnv] | None:
    """Detects the cluster that started this process as one of several; None for a single process.

    A cluster of one process is not joined: JAX would use one of the host's GPUs.
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
