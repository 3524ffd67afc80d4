"""Two hosts whose devices lie as in a TPU slice: the metrics of one host, errors that end both, and no waiting.

One pair of processes runs all scenarios (drive_hosts.py), and by `make slow` another pair those of other shardings.
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


SCENARIOS = (
    "tpu_order",
    "unreadable_on_one_host",
    "too_many_broken",
    "broken_in_an_evaluation",
    "an_evaluator_fails",
    "a_full_disk",
    "one_host_cannot_read",
    "one_host_is_asked_to_stop",
    "no_shared_directory",
    "wrong_on_one_host",
    "meetings",
    "unreachable_peer",  # ends the processes
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """`(folder, results of each scenario by host, exit codes, outputs)`."""
    return run_pair(tmp_path_factory.mktemp("hosts"), SCENARIOS)


@pytest.fixture(scope="module")
def tensor_pair(tmp_path_factory):
    return run_pair(tmp_path_factory.mktemp("tensor"), ["tensor_over_hosts"])


def run_pair(folder, scenarios):
    environment = os.environ | {
        "XLA_FLAGS": f"{_flags()} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    coordinator = f"127.0.0.1:{free_port()}"
    logs = [folder / f"{index}.log" for index in range(2)]
    processes = []
    for index, log in enumerate(logs):
        command = [sys.executable, str(DRIVER), str(folder), coordinator, str(index), *scenarios]
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


@pytest.mark.parametrize(
    "scenario, pair_of", [("tpu_order", "pair"), pytest.param("tensor_over_hosts", "tensor_pair", marks=pytest.mark.slow)]
)
def test_two_hosts_learn_and_evaluate_as_one_does(scenario, pair_of, one, request):
    folder, results, _, _ = request.getfixturevalue(pair_of)
    assert [host[scenario]["error"] for host in results] == [None, None]
    actual = metric_rows(folder / scenario)
    assert len(actual) == len(one) == 22
    for row, expected in zip(actual, one, strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-5, err_msg=key)
    misplaced = [row["order/misplaced"] for row in actual if "order/misplaced" in row]
    assert misplaced == [0, 0], "results come in the order of the records"


@pytest.mark.parametrize(
    "scenario, failing, words",
    [
        ("unreadable_on_one_host", 1, r"DataError: digits:train: \d+ broken samples in a row; the first: .*: gone"),
        ("broken_in_an_evaluation", 1, "DataError: a broken sample in an evaluation"),
        ("an_evaluator_fails", 1, "OSError: the labels are gone"),
        ("a_full_disk", 0, "OSError: no space left"),
    ],
)
def test_an_error_of_one_host_ends_both_and_what_was_trained_is_saved(scenario, failing, words, pair):
    folder, results, _, _ = pair
    failed, other = results[failing][scenario], results[1 - failing][scenario]
    assert re.match(words, failed["error"]), failed["error"]
    assert re.match(f"PeerError: process {failing} failed: {words}", other["error"]), other["error"]
    assert failed["saved"] == other["saved"] and len(failed["saved"]) == 1
    assert failed["saved"][0] >= max(row["step"] for row in metric_rows(folder / scenario)), "no logged update is lost"


def test_broken_samples_are_counted_over_all_hosts(pair):
    _, results, _, _ = pair
    first, second = (host["too_many_broken"] for host in results)
    assert first == second and len(first["saved"]) == 1
    assert re.match(r"DataError: 5\d of \d+ samples read were broken", first["error"]), first["error"]


def test_no_host_resumes_from_a_checkpoint_that_one_cannot_read(pair):
    folder, results, _, outputs = pair
    assert results[0]["one_host_cannot_read"] == results[1]["one_host_cannot_read"]
    result = results[0]["one_host_cannot_read"]
    assert result["first"]["error"] is None and result["first"]["saved"] == [10, 20]
    assert result["second"]["error"] is None and result["second"]["saved"] == [10, 20] and result["aside"]
    for output in outputs:
        said = output.split("===== one_host_cannot_read")[1].split("=====")[0]
        assert "resumed from step 10" in said
        assert re.search(r"checkpoint \S+/20: process 1: OSError: stale file handle cannot be read", said)
    assert [row["step"] for row in metric_rows(folder / "one_host_cannot_read")] == list(range(1, 21))


def test_a_signal_to_one_host_stops_both_after_the_same_update(pair, one):
    folder, results, _, _ = pair
    assert results[0]["one_host_is_asked_to_stop"] == results[1]["one_host_is_asked_to_stop"]
    result = results[0]["one_host_is_asked_to_stop"]
    step = result["first"]["saved"][0]
    assert 8 <= step <= 10
    assert result["first"]["error"].startswith(f"Stopped: stopped after step {step} by SIGTERM")
    assert result["second"]["error"] is None
    losses = [row["loss"] for row in metric_rows(folder / "one_host_is_asked_to_stop")]
    np.testing.assert_allclose(losses, [row["loss"] for row in one if "loss" in row], rtol=1e-5)


def test_a_directory_that_hosts_do_not_share_is_refused(pair):
    _, results, _, _ = pair
    failed, other = results[1]["no_shared_directory"], results[0]["no_shared_directory"]
    assert re.match("ConfigError: process 1 does not see in .*name a --workdir that all hosts share", failed["error"])
    assert other["error"].startswith("PeerError: process 1 failed: ConfigError") and not other["saved"]


def test_a_mistake_that_one_host_alone_finds_ends_both_before_training(pair):
    _, results, _, _ = pair
    assert "no-such-set" in results[1]["wrong_on_one_host"]["error"]
    assert re.match("PeerError: process 1 failed: .*no-such-set", results[0]["wrong_on_one_host"]["error"])


def test_updates_need_no_meetings(pair):
    _, results, _, _ = pair
    for host in results:
        short, long = host["meetings"]
        assert short == long > 0


def test_a_host_whose_peer_is_stuck_prints_its_error_and_no_host_hangs(pair):
    _, _, codes, outputs = pair
    assert codes[1] == 1 and codes[0] != 0
    assert "OSError: the labels are gone" in outputs[1] and "the other hosts do not answer" in outputs[1]
    assert all("the other host answered" not in output for output in outputs)
