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


LONG = {"steps": 400, "checkpoint": {"every": 40, "keep_last": 2}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(workdir, LONG))
    return lines(workdir)


def test_killed_at_a_random_step_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    for kill_at in sorted(random.Random(7).sample(range(45, 390), 2)):
        process = start(tmp_path, LONG)
        wait_for_step(process, tmp_path, kill_at)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start(tmp_path, LONG))
    assert lines(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_so(number, uninterrupted, tmp_path):
    process = start(tmp_path, LONG)
    wait_for_step(process, tmp_path, 50)
    process.send_signal(number)
    output = finish(process, code=128 + number)
    assert "stopped after step" in output
    last = lines(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / str(last)).is_dir(), "saved where it stopped, not at the last multiple"
    finish(start(tmp_path, LONG))
    assert lines(tmp_path) == uninterrupted


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(uninterrupted, tmp_path):
    process = start(tmp_path, LONG)
    wait_for_step(process, tmp_path, 130)
    process.send_signal(signal.SIGTERM)
    finish(process, code=143)
    checkpoints = sorted(
        (p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    newest, before = checkpoints[-1], checkpoints[-2]
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    output = finish(start(tmp_path, LONG))
    assert str(newest) in output or newest.name in output
    assert f"resumed from step {before.name}" in output
    assert lines(tmp_path) == uninterrupted


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
