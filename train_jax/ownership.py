"""Lock file of a run directory. The file names the training process, which renews it periodically.

The lock of a killed process can be taken over: at once if the process was on this host, otherwise after the file has not
been renewed for a while. Nothing has to be removed by hand. The other hosts of a job check the token in the file to verify
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
_SILENCE = 30.0  # seconds without renewal after which an owner counts as dead; also the timeout to see the file


def find_owner(workdir: AnyPath) -> str | None:
    """Returns which other running process trains in a run directory, such as "process 12 of host a"; None if none does.

    A process of another machine counts as running until it has not renewed its lock for a while.
    """
    file = workdir / _FILE
    try:
        owner = json.loads(file.read_text())
        name = f"process {owner['pid']} of {owner['host']}"
        if owner["machine"] == _machine():
            return name if owner["pid"] != os.getpid() and _is_running(owner["pid"]) else None
        return name if time.time() - file.stat().st_mtime < _SILENCE else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Ownership:
    """Lock of this job on a run directory, from construction until `close`. Process 0 holds the lock for all hosts.

    Raises ConfigError if another run holds the lock, or if a host of this job sees another directory under the same path.

    Attributes:
      error: error that says which other run has taken the lock; None while this job holds it.
    """

    def __init__(self, workdir: AnyPath):
        self.error: Exception | None = None
        self._file = workdir / _FILE
        self._owner = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        self._owner |= {"token": uuid.uuid4().hex, "beat": 0}
        self._closed = threading.Event()
        self._thread = None
        if jax.process_index() == 0:
            self._acquire()
            self._thread = threading.Thread(target=self._renew, daemon=True)
            self._thread.start()
        try:
            self._wait_for_file(agreement.broadcast_from_first(self._owner["token"]))
            agreement.barrier()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases the lock."""
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        self._thread = None
        if (self._read() or {}).get("token") == self._owner["token"]:
            self._file.unlink()

    def _acquire(self) -> None:
        """Creates the lock file, in place of a dead process's. Raises ConfigError if a running process holds the lock.

        If two processes replace the same file at once, `_renew` of the one that lost it sets `error`.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self._create()
                return
            except FileExistsError:
                owner = self._read()
            if self._is_alive(owner):
                raise self._make_error()
            self._file.unlink(missing_ok=True)

    def _create(self) -> None:
        """Creates the lock file. Raises FileExistsError if it exists.

        Object storage does not detect two simultaneous writers.
        """
        if isinstance(self._file, Path):
            with self._file.open("x") as file:
                json.dump(self._owner, file)
        elif self._file.exists():
            raise FileExistsError(self._file)
        else:
            self._file.write_text(json.dumps(self._owner))

    def _is_alive(self, owner: dict | None) -> bool:
        """Returns whether the owner of the lock is a running process.

        Args:
          owner: content of the lock file; None: the file was not readable, such as while being written.
        """
        own = self._owner
        same_machine = owner and owner.get("machine") == own["machine"]
        if same_machine and (owner["pid"] == own["pid"] or not _is_running(owner["pid"])):
            return False
        log.info("%s: waiting up to %.0f s to see whether its owner is alive", self._file, _SILENCE)
        deadline = time.monotonic() + _SILENCE
        while time.monotonic() < deadline:
            time.sleep(_BEAT / 5)
            current = self._read()
            if current != owner:
                return current is not None  # renewed or taken over; None: released
        return False

    def _make_error(self) -> ConfigError:
        """Makes the error for a directory that another run holds."""
        owner = self._read() or {"pid": "unknown", "host": "another host"}
        return ConfigError(
            f"{self._file.parent} is being trained in by process {owner['pid']} of {owner['host']}: wait for it, stop it, "
            "or choose another --workdir. If these are hosts of one job, they have not found each other: see --distributed"
        )

    def _wait_for_file(self, token: str) -> None:
        """Waits until the lock file with this token is visible, which may take a while on shared file systems."""
        deadline = time.monotonic() + _SILENCE
        while (self._read() or {}).get("token") != token:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"process {jax.process_index()} does not see in {self._file.parent} what process 0 wrote there: name a "
                    "--workdir that all hosts share"
                )
            time.sleep(_BEAT / 50)

    def _renew(self) -> None:
        """Renews the lock file periodically, in a thread, until `close`."""
        failed = False
        while not self._closed.wait(_BEAT):
            try:
                owner = self._read()
                if owner is not None and owner["token"] != self._owner["token"]:  # two runs took over the same lock
                    self.error = self._make_error()
                    return
                self._owner["beat"] += 1
                unfinished = self._file.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(self._owner))
                unfinished.replace(self._file)
                failed = False
            except Exception as error:  # storage libraries raise various classes; an unrenewed lock expires
                if not failed:
                    log.warning("%s cannot be renewed: %s", self._file, error)
                failed = True

    def _read(self) -> dict | None:
        """Reads the lock file; None if it is missing or unreadable."""
        try:
            owner = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return None
        return owner if isinstance(owner, dict) else None


def _machine() -> str:
    """Returns an identifier of the machine, its last boot and the PID namespace.

    Processes with the same identifier see each other's PIDs.
    """
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return " ".join(
        [
            socket.gethostname(),
            boot.read_text().strip() if boot.exists() else "",
            os.readlink(space) if space.exists() else "",
        ]
    )


def _is_running(pid: int) -> bool:
    """Returns whether a process with this PID is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
