"""Two hosts compute the codes that one computes, draw the pictures that one draws, and fail together."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("drive_hosts.py")


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    """The folder with the results of two processes of two devices."""
    out = tmp_path_factory.mktemp("pair")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        job = f"127.0.0.1:{s.getsockname()[1]}", "2"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(DRIVER), str(tiny[1].parent), str(out), *job]
    hosts = [
        subprocess.Popen(
            [*command, str(index)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for index in range(2)
    ]
    for host in hosts:
        output, _ = host.communicate(timeout=500)
        assert host.returncode == 0, output[-3000:]
    return out


def test_two_hosts_compute_and_draw_what_one_does(tiny, pair, tmp_path):
    expected = runpy.run_path(str(DRIVER))["figures"](tiny[1].parent, tmp_path)
    (codes,) = (file for file in tmp_path.glob("codes-*.npy") if ".crc" not in file.name)
    for file in (codes, codes.with_suffix(".crc.npy"), codes.with_suffix(".json")):
        assert (pair / "codes" / file.name).read_bytes() == file.read_bytes()
    assert np.load(codes).dtype == np.uint8
    for host in range(2):
        with np.load(pair / f"figures-{host}.npz") as results:
            assert results.keys() == expected.keys()
            for name, value in expected.items():
                if (
                    value.dtype == np.uint8
                ):  # equal codes, decoded in batches of another size: a shade may round otherwise
                    difference = np.abs(results[name].astype(int) - value)
                    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3, name
                else:
                    np.testing.assert_allclose(results[name], value, rtol=1e-5, err_msg=name)


def test_a_failure_is_named_on_every_host_and_nothing_done_is_lost(pair):
    errors = [json.loads((pair / f"failures-{host}.json").read_text()) for host in range(2)]
    assert errors[0][0].startswith("DataError: codes could not be computed by host 1: OSError: the disk is gone")
    assert errors[1][0] == "OSError: the disk is gone"
    records = json.loads(next((pair / "codes").glob("codes-*.json")).read_text())["records"]
    assert errors[0][1] < records // 2, "host 0 had encoded a part at least of its half"
    assert errors[1][1] >= records // 2 - 32
    for host in range(2):
        assert "host(s) 1 do not see it: set config.codes.dir to a directory that all hosts share" in errors[host][2]
    assert not list((pair / "codes").glob("*.parts"))
