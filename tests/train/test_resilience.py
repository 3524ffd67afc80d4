"""What must not be lost: killed processes, signals, damaged files. Real processes, real signals."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from drive_toy import config, metric_rows

import train_jax

DRIVER = Path(__file__).with_name("drive_toy.py")
ROOT = Path(__file__).parents[2]


def start(workdir, changes):
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(workdir), json.dumps(changes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output[-3000:]
    return output


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in metric_rows(workdir)):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


LONG = {"steps": 120, "checkpoint": {"every": 20, "keep_last": 2}}


def test_a_run_that_was_killed_stopped_and_damaged_equals_an_uninterrupted_one(tmp_path_factory, tmp_path, caplog):
    uninterrupted = tmp_path_factory.mktemp("uninterrupted")
    train_jax.run(config(**LONG), uninterrupted)

    def interrupted(step: int, number: int, code: int) -> str:
        process = start(tmp_path, LONG)
        wait_for_step(process, tmp_path, step)
        process.send_signal(number)
        return finish(process, code)

    def checkpoints() -> list[Path]:
        folders = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
        return sorted(folders, key=lambda path: int(path.name))

    interrupted(random.Random(7).randrange(25, 50), signal.SIGKILL, -signal.SIGKILL)
    assert "stopped after step" in interrupted(65, signal.SIGTERM, 128 + signal.SIGTERM)
    last = metric_rows(tmp_path)[-1]["step"]
    assert checkpoints()[-1].name == str(last), "saved where it stopped, not at the last multiple"

    before, newest = checkpoints()[-2:]
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.INFO, "train_jax"):
        train_jax.run(config(**LONG), tmp_path)
    assert f"moved the unreadable checkpoint {newest.name}" in caplog.text
    assert f"resumed from step {before.name}" in caplog.text
    assert metric_rows(tmp_path) == metric_rows(uninterrupted)
