"""What must not be lost: killed processes, signals, damaged files. Real processes, real signals."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("drive_toy.py")
ROOT = Path(__file__).parents[2]


def start(workdir, changes, *job, devices=1):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(workdir), json.dumps(changes), *map(str, job)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output[-3000:]
    return output


def lines(workdir):
    """The metric lines without what depends on the clock; an unfinished last line is left out."""
    path = workdir / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            row = json.loads(line)
            found.append(
                {k: v for k, v in row.items() if not k.startswith(("time", "steps_per", "examples_per", "mfu"))}
            )
    return found


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in lines(workdir)):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


LONG = {"steps": 300, "checkpoint": {"every": 40, "keep_last": 2}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(workdir, LONG))
    return lines(workdir)


def test_killed_stopped_and_damaged_a_run_still_equals_an_uninterrupted_one(uninterrupted, tmp_path):
    def interrupted(step: int, number: int, code: int) -> str:
        process = start(tmp_path, LONG)
        wait_for_step(process, tmp_path, step)
        process.send_signal(number)
        return finish(process, code)

    def checkpoints() -> list[Path]:
        folders = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
        return sorted(folders, key=lambda path: int(path.name))

    interrupted(random.Random(7).randrange(45, 130), signal.SIGKILL, -signal.SIGKILL)
    assert "stopped after step" in interrupted(180, signal.SIGTERM, 128 + signal.SIGTERM)
    last = lines(tmp_path)[-1]["step"]
    assert checkpoints()[-1].name == str(last), "saved where it stopped, not at the last multiple"

    before, newest = checkpoints()[-2:]
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    output = finish(start(tmp_path, LONG))
    assert newest.name in output and f"resumed from step {before.name}" in output
    assert lines(tmp_path) == uninterrupted


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
