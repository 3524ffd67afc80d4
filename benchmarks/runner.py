"""Runs benchmarks one after the other, each in a process of its own, whose failure or end by time ends no other."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# Imported once, by the process that all others are forked from.
_PRELOAD = ("benchmarks.attention", "benchmarks.cache", "benchmarks.painting_speed", "benchmarks.training")


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


def call_in_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in a process of its own, so that this one initialises no devices."""
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        return pool.submit(function, *arguments).result()


def import_all(modules: Sequence[str]) -> None:
    """Imports benchmarks in a process of its own. Raises ImportError if a package is missing."""
    call_in_process(_import, modules)


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(f"benchmarks.{module}")


def run(module: str, argv: Sequence[str], timeout: float | None = None) -> tuple[float, str]:
    """Runs a benchmark, a module of this package.

    Args:
      argv: arguments of its command.
      timeout: seconds after which it and its children are killed; None: never.

    Returns the seconds that it took, and why it did not finish, or "".
    """
    begun = time.monotonic()
    process = _context().Process(target=_run, args=(module, list(argv)))
    process.start()
    process.join(timeout)
    problem = "cut off for want of time" if process.exitcode is None else ""
    if problem:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    elif process.exitcode:
        problem = f"ended with code {process.exitcode}"
    return time.monotonic() - begun, problem


def _run(module: str, argv: list[str]) -> None:
    os.setsid()  # its children are killed with it
    benchmark, command = importlib.import_module(f"benchmarks.{module}"), importlib.import_module("benchmarks.command")
    command.main(benchmark.rows, getattr(benchmark, "add_arguments", lambda parser: None), argv)
