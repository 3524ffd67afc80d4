"""Lock of a run directory: a file that names the process that trains there, renewed while it lives.

A killed process leaves its file behind. It is taken over at once if that process was on this host and is gone, and else when
it has not been renewed for a while; nothing has to be removed by hand. The file's token shows other hosts of a job, too,
that they see the same directory.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path

import jax

from train_jax import agreement
from train_jax.errors import ConfigError
from train_jax.paths import AnyPath

log = logging.getLogger(__name__)

_FILE = "owner.json"
_BEAT = 5.0  # seconds between renewals
_SILENCE = 30.0  # seconds without one after which an owner counts as gone; also for which other hosts look for the file


class Ownership:
    """This job's lock on a run directory, from construction until `close`. Process 0 holds it for all hosts.

    Raises ConfigError if another run holds the directory, or if a host of this job sees another directory under its name.

    Attributes:
      error: why the claim is lost: another run has taken the directory. None while it is held.
    """

    def __init__(self, workdir: AnyPath):
        self.error: Exception | None = None
        self._file = workdir / _FILE
        self._owner = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        self._owner |= {"token": uuid.uuid4().hex, "beat": 0}
        self._closed = threading.Event()
        self._thread = None
        if jax.process_index() == 0:
            self._claim()
            self._thread = threading.Thread(target=self._renew, daemon=True)
            self._thread.start()
        try:
            self._find(agreement.from_first(self._owner["token"]))
            agreement.gather()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        self._thread = None
        if (self._read() or {}).get("token") == self._owner["token"]:
            self._file.unlink()

    def _claim(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self._create()
                return
            except FileExistsError:
                other = self._read()
            if self._lives(other):
                raise self._refusal()
            self._file.unlink(missing_ok=True)

    def _create(self) -> None:
        """Creates the file; FileExistsError if there is one.

        Object storage does not detect two writers at one moment.
        """
        if isinstance(self._file, Path):
            with self._file.open("x") as file:
                json.dump(self._owner, file)
        elif self._file.exists():
            raise FileExistsError(self._file)
        else:
            self._file.write_text(json.dumps(self._owner))

    def _lives(self, owner: dict | None) -> bool:
        """Whether the owner is a running process; None: the file was not readable, as one that is just being written.
        """
        me = self._owner
        if owner and owner.get("machine") == me["machine"] and (owner["pid"] == me["pid"] or not _runs(owner["pid"])):
            return False
        log.info("%s: watching for %.0f s whether its owner lives", self._file, _SILENCE)
        deadline = time.monotonic() + _SILENCE
        while time.monotonic() < deadline:
            time.sleep(_BEAT / 5)
            now = self._read()
            if now != owner:
                return now is not None  # renewed, or taken by another; or released
        return False

    def _refusal(self) -> ConfigError:
        other = self._read() or {"pid": "unknown", "host": "another host"}
        return ConfigError(
            f"{self._file.parent} is being trained in by process {other['pid']} of {other['host']}: wait for it, stop it, "
            "or choose another --workdir. If these are hosts of one job, they have not found each other: see --distributed"
        )

    def _find(self, token: str) -> None:
        """Waits for the file to appear, which takes a while on shared file systems."""
        deadline = time.monotonic() + _SILENCE
        while (self._read() or {}).get("token") != token:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"process {jax.process_index()} does not see in {self._file.parent} what process 0 wrote there: name a "
                    "--workdir that all hosts share"
                )
            time.sleep(_BEAT / 50)

    def _renew(self) -> None:
        failed = False
        while not self._closed.wait(_BEAT):
            try:
                owner = self._read()
                if owner is not None and owner["token"] != self._owner["token"]:  # two took over from the same dead owner
                    self.error = self._refusal()
                    return
                self._owner["beat"] += 1
                unfinished = self._file.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(self._owner))
                unfinished.replace(self._file)
                failed = False
            except Exception as error:  # storage raises classes of its own; a claim that is not renewed is lost
                if not failed:
                    log.warning("%s cannot be renewed: %s", self._file, error)
                failed = True

    def _read(self) -> dict | None:
        try:
            owner = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return None
        return owner if isinstance(owner, dict) else None


def _machine() -> str:
    """Identifies the machine since its last boot and the PID namespace: processes with the same identity see each
    other's PIDs.
    """
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return " ".join(
        [
            socket.gethostname(),
            boot.read_text().strip() if boot.exists() else "",
            os.readlink(space) if space.exists() else "",
        ]
    )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
