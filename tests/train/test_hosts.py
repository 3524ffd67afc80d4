"""Two hosts whose devices lie as in a TPU slice: same numbers, one way out of every error, and no waiting.

One pair of processes plays all scenes (drive_hosts.py).
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drive_toy import config, metric_rows

import train_jax

DRIVER = Path(__file__).with_name("drive_hosts.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """`(folder, what each host saw of each scene, exit codes, outputs)`."""
    folder = tmp_path_factory.mktemp("hosts")
    environment = os.environ | {
        "XLA_FLAGS": f"{_flags()} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    coordinator = f"127.0.0.1:{free_port()}"
    logs = [folder / f"{index}.log" for index in range(2)]
    processes = []
    for index, log in enumerate(logs):
        command = [sys.executable, str(DRIVER), str(folder), coordinator, str(index)]
        with log.open("w") as file:
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=540) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = [log.read_text() for log in logs]
    files = [folder / f"{index}.json" for index in range(2)]
    assert all(file.is_file() for file in files), outputs[0][-3000:] + outputs[1][-3000:]
    return folder, [json.loads(file.read_text()) for file in files], codes, outputs


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _flags() -> str:
    return re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Metrics of the same run by one process."""
    workdir = tmp_path_factory.mktemp("one")
    evals = {"order": {"type": "order", "every": 10}, "end": {"type": "norm", "every": 10}}
    train_jax.run(config(steps=20, mesh={"data": 8}, evals=evals, checkpoint={"every": 1000}), workdir)
    return metric_rows(workdir)


@pytest.mark.parametrize("scene", ["tpu_order", "tensor_over_hosts"])
def test_two_hosts_learn_and_evaluate_as_one_does(scene, pair, one):
    folder, saw, _, _ = pair
    assert [host[scene]["error"] for host in saw] == [None, None]
    actual = metric_rows(folder / scene)
    assert len(actual) == len(one) == 22
    for mine, theirs in zip(actual, one, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-5, atol=1e-5, err_msg=key)
    misplaced = [row["order/misplaced"] for row in actual if "order/misplaced" in row]
    assert misplaced == [0, 0], "results come in the order of the records"


@pytest.mark.parametrize(
    "scene, failing, words",
    [
        ("unreadable_on_one_host", 1, r"DataError: digits:train: \d+ broken samples in a row; the first: .*: gone"),
        ("broken_in_an_evaluation", 1, "DataError: a broken sample in an evaluation"),
        ("an_evaluator_fails", 1, "OSError: the labels are gone"),
        ("a_full_disk", 0, "OSError: no space left"),
    ],
)
def test_an_error_of_one_host_ends_both_and_what_was_trained_is_saved(scene, failing, words, pair):
    folder, saw, _, _ = pair
    mine, others = saw[failing][scene], saw[1 - failing][scene]
    assert re.match(words, mine["error"]), mine["error"]
    assert re.match(f"PeerError: process {failing} failed: {words}", others["error"]), others["error"]
    assert mine["saved"] == others["saved"] and len(mine["saved"]) == 1
    assert mine["saved"][0] >= max(row["step"] for row in metric_rows(folder / scene)), "nothing that was logged is lost"


def test_broken_samples_are_judged_over_all_hosts(pair):
    _, saw, _, _ = pair
    first, second = (host["too_many_broken"] for host in saw)
    assert first == second and len(first["saved"]) == 1
    assert re.match(r"DataError: 5\d of \d+ samples read were broken", first["error"]), first["error"]


def test_what_one_host_cannot_read_no_host_resumes_from(pair):
    folder, saw, _, outputs = pair
    assert saw[0]["one_host_cannot_read"] == saw[1]["one_host_cannot_read"]
    seen = saw[0]["one_host_cannot_read"]
    assert seen["first"]["error"] is None and seen["first"]["saved"] == [10, 20]
    assert seen["second"]["error"] is None and seen["second"]["saved"] == [10, 20] and seen["aside"]
    for output in outputs:
        said = output.split("===== one_host_cannot_read")[1].split("=====")[0]
        assert "resumed from step 10" in said
        assert re.search(r"checkpoint \S+/20: process 1: OSError: stale file handle cannot be read", said)
    assert [row["step"] for row in metric_rows(folder / "one_host_cannot_read")] == list(range(1, 21))


def test_one_host_that_is_asked_to_stop_stops_both_after_the_same_update(pair, one):
    folder, saw, _, _ = pair
    assert saw[0]["one_host_is_asked_to_stop"] == saw[1]["one_host_is_asked_to_stop"]
    seen = saw[0]["one_host_is_asked_to_stop"]
    step = seen["first"]["saved"][0]
    assert 8 <= step <= 10
    assert seen["first"]["error"].startswith(f"Stopped: stopped after step {step} by SIGTERM")
    assert seen["second"]["error"] is None
    losses = [row["loss"] for row in metric_rows(folder / "one_host_is_asked_to_stop")]
    np.testing.assert_allclose(losses, [row["loss"] for row in one if "loss" in row], rtol=1e-5)


def test_a_directory_that_hosts_do_not_share_is_refused(pair):
    _, saw, _, _ = pair
    mine, others = saw[1]["no_shared_directory"], saw[0]["no_shared_directory"]
    assert re.match("ConfigError: process 1 does not see in .*name a --workdir that all hosts share", mine["error"])
    assert others["error"].startswith("PeerError: process 1 failed: ConfigError") and not others["saved"]


def test_a_mistake_that_one_host_alone_finds_ends_both_before_training(pair):
    _, saw, _, _ = pair
    assert "no-such-set" in saw[1]["wrong_on_one_host"]["error"]
    assert re.match("PeerError: process 1 failed: .*no-such-set", saw[0]["wrong_on_one_host"]["error"])


def test_updates_are_no_meetings(pair):
    _, saw, _, _ = pair
    for host in saw:
        short, long = host["meetings"]
        assert short == long > 0


def test_a_host_that_is_left_alone_prints_its_error_and_no_host_hangs(pair):
    _, _, codes, outputs = pair
    assert codes[1] == 1 and codes[0] != 0
    assert "OSError: the labels are gone" in outputs[1] and "the other hosts do not answer" in outputs[1]
    assert all("host was not left alone" not in output for output in outputs)
