"""Several hosts as one: `jax.distributed`, found by itself on Slurm, Open MPI, GKE and TPU pods, or told by flags."""

import os

import jax

from train_jax.errors import ConfigError


def initialize(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> None:
    """Joins this process with the others of its job; does nothing when it is alone.

    Args:
      coordinator: `host:port` of process 0; with `processes` and `index` it overrides what the cluster says.

    ConfigError if only some of the three are given.
    """
    given = [x is not None for x in (coordinator, processes, index)]
    if any(given) and not all(given):
        raise ConfigError(
            f"--coordinator={coordinator} --processes={processes} --process_index={index}: give all three, or none "
            "on a cluster that is recognised (Slurm, Open MPI, GKE, TPU pods)"
        )
    if all(given):
        jax.distributed.initialize(coordinator, processes, index)
    elif _in_cluster(os.environ):
        jax.distributed.initialize()


def _in_cluster(environment) -> bool:
    """Whether a job launcher's variables name more than one process."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    return (
        int(environment.get("SLURM_NTASKS", 1)) > 1
        and "SLURM_PROCID" in environment
        or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or len(hosts.split(",")) > 1
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    )
