"""Two players on two hosts: what two processes of four devices learn is what one of eight does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
_CLOCK = ("time", "steps_per", "examples_per", "mfu")


def start(config: Path, workdir: Path, devices: int, *job: str) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "train_jax", f"--config={config}", f"--workdir={workdir}", *job]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=workdir.parent
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


def metrics(workdir: Path) -> list[dict]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith(_CLOCK)} for row in rows]


def test_two_processes_of_four_devices_equal_one_of_eight(tiny, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({tiny[0].to_dict()!r})\n"
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    job = (f"--coordinator=127.0.0.1:{port}", "--processes=2")
    pair = [start(config, tmp_path / "two", 4, *job, f"--process_index={index}") for index in range(2)]
    for process in pair:
        finish(process)
    wanted, found = metrics(tiny[1]), metrics(tmp_path / "two")
    assert len(wanted) == 5  # four updates and the evaluation
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-3, atol=1e-4, err_msg=key)
