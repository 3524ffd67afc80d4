"""Processes of a sweep: each run is `train-jax` in a process of its own, here or in a Slurm array.

A run that fails leaves `failure.json` in its directory, `{"error": …, "step": …, "time": …}`; it is removed when the run is
started again, also without the sweep (`train_jax.record`). The output of the process is appended to `log.txt`.
"""

import concurrent.futures
import glob
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_jax import metrics, paths
from train_jax.errors import ConfigError, Stopped
from train_jax.ownership import find_owner
from train_jax.preemption import StopRequest
from train_jax.record import FAILURE

log = logging.getLogger(__name__)

_LOG = "log.txt"
_STOPPED = (130, 143)  # exit codes of runs that a signal has stopped
_POLL = 0.2  # seconds between looks at a process and at stop signals
_TAIL = 8192  # bytes at the end of the log in which an error is searched


class Process:
    """Process of one run.

    Args:
      words: arguments of `train-jax`.
      folder: run directory.
      cache: folder of compiled programs, one folder for each machine; JAX_COMPILATION_CACHE_DIR names another.
    """

    def __init__(self, words: Sequence[str], folder: Path, cache: Path):
        self._words, self._folder, self._cache = list(words), folder, cache
        self._process: subprocess.Popen | None = None

    def __call__(self, stop: Callable[[], int] = lambda: 0, share: Mapping[str, str] | None = None) -> int:
        """Runs the process to its end and returns its exit code; 0 at once if another process trains the run.

        Args:
          stop: function that returns a nonzero number when the process should save and stop.
          share: environment variables that assign its share of the GPUs.
        """
        if owner := find_owner(self._folder):
            log.warning("%s is being trained by %s: left to it", self._folder, owner)
            return 0
        self._folder.mkdir(parents=True, exist_ok=True)
        clear_failure(self._folder)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(name_cache(self._cache))} | os.environ
        command = [sys.executable, "-m", "train_jax.sweep.child", *self._words]
        with (self._folder / _LOG).open("ab") as output:
            start = output.tell()
            # A session of its own: Ctrl-C in the terminal reaches the sweep alone, which then stops its runs once.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=cache | dict(share or {}),
                start_new_session=True,
            )
            is_stopping = False
            while (code := self._process.poll()) is None:
                time.sleep(_POLL)
                if stop() and not is_stopping:
                    is_stopping = True
                    self._process.terminate()
        self._process.stdin.close()
        if code and not (is_stopping or code in _STOPPED):
            record_failure(self._folder, read_error(self._folder / _LOG, start, code))
        return code

    def checkpoint(self, *arguments) -> Any:
        """Stops the process, with its state saved, and submits it again: what submitit calls before a job's time ends."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._process = None  # submitit pickles what it submits
        return submitit.helpers.DelayedSubmission(self, *arguments)


def run_processes(processes: Mapping[str, Process], jobs: int, on_end: Callable[[str, int], None]) -> None:
    """Runs processes here, up to `jobs` at a time, on equal shares of the GPUs.

    Args:
      on_end: called with the name and the exit code of each process that has ended.

    Raises Stopped after a stop signal, when all processes have saved and ended.
    """
    shares = divide_gpus(jobs, list_gpus())
    free = list(range(jobs))
    lock = threading.Lock()
    with StopRequest() as stop:

        def run(name: str) -> int:
            if stop.signal_number:
                return _STOPPED[0]
            with lock:
                slot = free.pop(0)
            try:
                return processes[name](lambda: stop.signal_number, shares[slot])
            except OSError as error:  # such as a directory that cannot be written, which holds no failure either
                log.error("%s: could not be started: %s", name, error)
                return 1
            finally:
                with lock:
                    free.append(slot)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(run, name): name for name in processes}
            while running:
                # With a timeout, since signal handlers do not run while the main thread waits for a lock.
                done, _ = concurrent.futures.wait(running, _POLL, concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    on_end(running.pop(future), future.result())
        if stop.signal_number:
            raise Stopped(0, stop.signal_number)


def submit_to_slurm(processes: Mapping[str, Process], folder: Path, jobs: int, options: Mapping[str, Any]) -> list[Any]:
    """Submits processes as one array of Slurm jobs, of which up to `jobs` run at a time. Returns submitit's jobs.

    Args:
      folder: folder of submitit's files.
      options: parameters of submitit, such as {"timeout_min": 600, "slurm_partition": "gpu"}; "cluster" "local" runs the
        jobs here.

    Jobs whose time ends are submitted again and resume. Raises ConfigError without submitit, and without Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--launcher=slurm needs submitit: pip install 'multimodal-jax[slurm]'") from error
    options = dict(options)
    cluster = options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**({"slurm_array_parallelism": jobs} if cluster == "slurm" else {}), **options)
    except (RuntimeError, NameError, ValueError) as error:
        raise ConfigError(f"--launcher=slurm: {error}") from error
    with executor.batch():
        return [executor.submit(process) for process in processes.values()]


def name_cache(folder: Path) -> Path:
    """Names the folder of this machine's compiled programs: those of a CPU do not run on every other."""
    return folder / platform.node()


def record_failure(folder: Path, error: str) -> None:
    """Writes the error of a failed run into its directory, unless another process trains there."""
    if owner := find_owner(folder):
        log.warning("%s is being trained by %s: left to it (%s)", folder, owner, error)
        return
    history = metrics.read(folder, on_invalid=lambda damage: None)
    content = {"error": error, "step": history[-1]["step"] if history else 0, "time": time.time()}
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_atomically(folder / FAILURE, lambda stream: stream.write((json.dumps(content) + "\n").encode()))


def clear_failure(folder: Path) -> None:
    """Forgets the failure of a run that starts again."""
    (folder / FAILURE).unlink(missing_ok=True)


def divide_gpus(jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Divides GPUs between `jobs` processes. Returns the environment variables of each.

    With fewer GPUs than processes, processes share GPUs and their memory.
    """
    if not gpus or jobs == 1:
        return [{}] * jobs
    if jobs <= len(gpus):
        count = len(gpus) // jobs
        return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * count : (i + 1) * count])} for i in range(jobs)]
    share = 0.9 / -(-jobs // len(gpus))
    return [
        {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.2f}"} for i in range(jobs)
    ]


def list_gpus() -> list[str]:
    """Lists the NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def read_error(file: Path, start: int, code: int) -> str:
    """Reads why a process has failed: the last line of its output that names an error."""
    with file.open("rb") as stream:
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - _TAIL))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if "rror" in line), "")
    if code < 0:  # which tells more than the last line that happens to name an error
        return f"killed by signal {-code}{f'; before it: {error}' if error else ''}"[:500]
    return (error or f"exit code {code}")[:500]
