"""CLIP, VQGAN and DALL-E train and evaluate on two hosts as on one; devices lie as in a TPU slice, workers read the data."""

import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import train_jax
import vqgan_jax
from train_jax.datasets import shapes
from train_jax.datasets.shapes import shapes_dataset_builder

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
_CLOCK = ("time", "steps_per", "examples_per", "mfu")
FAMILIES = ("clip", "vqgan", "dalle")


def module(family: str):
    """The smallest configs are those of the families' own tests."""
    spec = importlib.util.spec_from_file_location(f"{family}_conftest", HERE / family / "conftest.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def configs(folder: Path, vqgan: vqgan_jax.Vqgan) -> dict:
    counts = {"train": 64, "test": 40, "novel": 16}
    with mock.patch.object(shapes_dataset_builder, "EXAMPLES", counts), contextlib.chdir(folder):
        shapes.builder("32", data_dir=str(folder / "data"))
    vqgan_jax.save(vqgan, folder / "vqgan.safetensors")
    made = {family: module(family).tiny_config(folder / "data") for family in ("clip", "vqgan")}
    made["dalle"] = module("dalle").tiny_config(folder)
    made["clip"].evals.search = {"type": "retrieval"}
    return made


@pytest.fixture(scope="module")
def metrics(tmp_path_factory, untrained_vqgan) -> dict:
    """`{family: (rows of one process of eight devices, rows of two of four)}`."""
    folder = tmp_path_factory.mktemp("families")
    made = configs(folder, untrained_vqgan)
    for family, config in made.items():
        train_jax.run(config, folder / "one" / family)
    for family in ("clip", "vqgan"):
        made[family].data.workers = 1
    file = folder / "configs"
    file.write_text(repr([(config.to_dict(), str(folder / "two" / family)) for family, config in made.items()]))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(HERE.parent),
    }
    logs = [folder / f"{index}.log" for index in range(2)]
    processes = []
    for index, log in enumerate(logs):
        command = [sys.executable, str(HERE / "drive_families.py"), str(file), coordinator, str(index)]
        with log.open("w") as out:
            processes.append(
                subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
            )
    try:
        codes = [process.wait(timeout=540) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return {family: tuple(rows(folder / hosts / family) for hosts in ("one", "two")) for family in made}


def rows(workdir: Path) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith(_CLOCK)} for row in lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_hosts_learn_and_evaluate_as_one_does(family, metrics):
    one, two = metrics[family]
    assert len(one) == len(two) >= 4
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-5, atol=1e-5, err_msg=f"step {mine['step']}: {key}")
