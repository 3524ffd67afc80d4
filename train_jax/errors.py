"""Errors that a user can correct; command lines show them in one line, without a traceback."""

import math
import signal

import numpy as np


class ConfigError(ValueError):
    """An option that is unknown, of the wrong type, out of range, or at odds with the machine or the run directory."""


class LoadError(ValueError):
    """A file or folder is no model that can be opened, or its parts do not belong together."""


class UserError(ValueError):
    """Arguments of a command that parse and are invalid."""


class Stopped(Exception):
    """A run was stopped by a signal before it was finished. Its state is saved; running it again resumes it.

    Attributes:
      step: the update after which it stopped.
      exit_code: what a command line ends with, 128 + signal: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, step: int, signal_number: int):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped after step {step} by {name}; the same command goes on from there")
        self.step = step
        self.exit_code = 128 + signal_number


class Interrupted(Exception):
    """An evaluation was abandoned because a host received a signal to stop."""

    def __init__(self, signal_number: int):
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


def in_float32(value: float | int | np.number) -> bool:
    """Whether float32, in which programs compute, represents the number: neither overflows nor underflows to 0."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return math.isfinite(rounded) and (rounded == 0) == (value == 0)
