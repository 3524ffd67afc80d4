"""Signals as requests: noted once, then what they were before; a second one ends even a process that is stuck."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from train_jax.preemption import StopRequest

STUCK = """
import ctypes, sys
from train_jax import preemption
preemption._GRACE = 0.2
preemption.StopRequest().__enter__()
lock, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
library.pthread_mutex_lock(lock)
print("ready", flush=True)
library.pthread_mutex_lock(lock)  # as in a collective that another host never joins: no Python code runs any more
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded_and_the_handlers_are_restored(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert not stop.signal_number
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before, "the second acts at once"


def test_without_a_signal_the_handlers_are_restored_too():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        pass
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_in_another_thread_nothing_is_recorded():
    def inside():
        with StopRequest() as stop:
            seen.append(stop.signal_number)

    seen: list[int] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_process_that_is_stuck(number):
    # A shell lets what it starts in the background ignore SIGINT.
    script = f"import signal; signal.signal({int(signal.SIGINT)}, signal.default_int_handler)\n{STUCK}"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None, "the first is a request"
    process.send_signal(number)
    assert process.wait(timeout=20) in (128 + number, -number), "by the thread, or by the handler that was there before"
    process.stdout.close()
