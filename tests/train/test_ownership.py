"""One run in a directory at a time, and none that has to be freed by hand."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from train_jax import ownership
from train_jax.errors import ConfigError
from train_jax.ownership import Ownership


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ownership, "_BEAT", 0.05)
    monkeypatch.setattr(ownership, "_SILENCE", 0.6)


@pytest.fixture
def other_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def write(workdir, beat=0, **owner):
    here = {"host": socket.gethostname(), "machine": ownership._machine()}
    owner = here | {"pid": 1, "token": "other", "beat": beat} | owner
    unfinished = workdir / "owner.part"
    unfinished.write_text(json.dumps(owner))
    unfinished.replace(workdir / "owner.json")


def renewing(workdir, **owner):
    """An owner that renews its file."""
    ended = threading.Event()

    def renew():
        beat = 1
        while not ended.wait(0.05):
            write(workdir, beat, **owner)
            beat += 1

    write(workdir, **owner)
    thread = threading.Thread(target=renew)
    thread.start()
    return lambda: (ended.set(), thread.join())


def test_the_file_is_there_while_the_run_is(tmp_path):
    owner = Ownership(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "owner.json").read_text())
    assert written["host"] == socket.gethostname()
    deadline = time.monotonic() + 10
    while json.loads((tmp_path / "run" / "owner.json").read_text())["beat"] < 3:
        assert time.monotonic() < deadline, "it is renewed"
        time.sleep(0.02)
    owner.close()
    assert not (tmp_path / "run" / "owner.json").exists()


@pytest.mark.parametrize("host", [socket.gethostname(), "another-host"])
@pytest.mark.parametrize("machine", [ownership._machine(), "a container with numbers of its own"])
def test_a_directory_in_which_another_process_trains_is_refused(host, machine, tmp_path, other_process):
    if machine != ownership._machine():  # where it lives, this number is another process's; here it is none
        other_process.kill()
        other_process.wait()
    stop = renewing(tmp_path, host=host, machine=machine, pid=other_process.pid)
    try:
        with pytest.raises(ConfigError, match=rf"trained in by process {other_process.pid} of {host}.*--distributed"):
            Ownership(tmp_path)
    finally:
        stop()
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "other"


def test_what_a_killed_process_left_is_taken_over_at_once(tmp_path, other_process, monkeypatch):
    monkeypatch.setattr(ownership, "_SILENCE", 600)
    other_process.kill()
    other_process.wait()
    write(tmp_path, pid=other_process.pid)
    Ownership(tmp_path).close()


@pytest.mark.parametrize("text", ["another host", "", "{"])
def test_a_silent_owner_is_taken_over_after_a_while(text, tmp_path):
    write(tmp_path, host="another-host", machine="another machine")
    if text != "another host":  # killed while it wrote
        (tmp_path / "owner.json").write_text(text)
    begun = time.monotonic()
    Ownership(tmp_path).close()
    assert time.monotonic() - begun > 0.6


def test_two_that_take_over_at_the_same_time_do_not_both_train(tmp_path):
    owner = Ownership(tmp_path)
    write(tmp_path, token="the one that came later")
    deadline = time.monotonic() + 10
    while owner.error is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert isinstance(owner.error, ConfigError)
    owner.close()
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "the one that came later"
