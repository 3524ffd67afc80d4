"""Errors that users can correct. Command lines print them in one line, without a traceback."""

import math
import signal

import numpy as np


class UserError(ValueError):
    """Error that users can correct: the base of such errors, and itself an invalid command-line argument."""


class ConfigError(UserError):
    """Invalid option: unknown, of the wrong type, out of range, or inconsistent with machine or run directory."""


class LoadError(UserError):
    """Invalid model: a file or folder that cannot be opened as a model, or that has inconsistent parts."""


class Stopped(Exception):
    """Stop of an unfinished run by a signal. Its state is saved; running the command again resumes the run.

    Attributes:
      step: last update of the stopped run.
      exit_code: exit code of the command line, 128 + signal: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, step: int, signal_number: int):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped after step {step} by {name}; the same command goes on from there")
        self.step = step
        self.exit_code = 128 + signal_number


class Interrupted(Exception):
    """Abort of an evaluation because a host received a signal to stop."""

    def __init__(self, signal_number: int):
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


def in_float32(value: float | int | np.number) -> bool:
    """Returns whether a number neither overflows nor underflows to 0 in float32."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return math.isfinite(rounded) and (rounded == 0) == (value == 0)
