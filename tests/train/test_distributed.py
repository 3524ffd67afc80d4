"""Clusters as JAX recognises them, by what each sets in a process; and the flags."""

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from train_jax import distributed
from train_jax.errors import ConfigError

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
GKE = {"TPU_WORKER_ID": "1", "MEGASCALE_NUM_SLICES": "1"}


@pytest.fixture
def joined(monkeypatch):
    """The calls of `jax.distributed.initialize`."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.fixture
def environment(monkeypatch):
    def use(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


def test_a_single_process_joins_nothing(joined):
    distributed.initialize()
    distributed.initialize(mode="off")
    assert joined == []
    with pytest.raises(ConfigError, match="--distributed=on: JAX recognises no cluster"):
        distributed.initialize(mode="on")


@pytest.mark.parametrize("variables", [SLURM | {"SLURM_NTASKS": "2"}, GKE | {"TPU_WORKER_HOSTNAMES": "a,b"}])
def test_clusters_that_set_variables(variables, joined, environment, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environment(TPU_SKIP_MDS_QUERY="1", **variables)
    distributed.initialize()
    assert joined == [((), {"cluster_detection_method": None})]
    distributed.initialize(mode="off")
    assert len(joined) == 1


def test_one_task_of_slurm_keeps_all_its_devices(joined, environment):
    environment(SLURM_NTASKS="1", **SLURM)
    distributed.initialize()
    assert joined == []


@pytest.mark.parametrize("workers, expected", [("10.0.0.1:1:a,10.0.0.2:2:b", 1), ("10.0.0.1:1:a", 0)])
def test_tpu_machines_are_known_by_their_metadata(workers, expected, joined, monkeypatch):
    known = {"agent-worker-number": "0", "worker-network-endpoints": workers, "tpu-env": ""}
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (known[key], 200))
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    distributed.initialize()
    assert len(joined) == expected


def test_mpi_that_jax_cannot_ask_is_not_taken_for_one_process(joined, environment):
    environment(PMI_SIZE="4")
    with pytest.raises(ConfigError, match="pip install mpi4py"):
        distributed.initialize()
    distributed.initialize("host:1", 4, 0)
    assert joined == [(("host:1", 4, 0), {})]


def test_flags_that_exclude_each_other():
    with pytest.raises(ConfigError, match="give all three, or none"):
        distributed.initialize("host:1", 2)
    with pytest.raises(ConfigError, match="exclude each other"):
        distributed.initialize("host:1", 2, 0, mode="off")
    with pytest.raises(ConfigError, match="must be auto, on, off"):
        distributed.initialize(mode="maybe")


def test_a_cluster_that_cannot_be_reached_is_a_mistake_with_a_remedy(environment, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("deadline exceeded")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(ConfigError, match=r"cannot be joined \(RuntimeError: deadline exceeded\).*--distributed=off"):
        distributed.initialize("host:1", 2, 0)
