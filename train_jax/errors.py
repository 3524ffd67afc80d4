"""What a user can get wrong; command lines show these in one line, without a traceback."""

import math
import signal

import numpy as np


class ConfigError(ValueError):
    """An option that is unknown, of the wrong type, out of range, or at odds with the machine or the run directory."""


class LoadError(ValueError):
    """What was given is no model that can be opened, or its parts do not belong together."""


class UserError(ValueError):
    """Arguments of a command that parse and cannot be."""


class Stopped(Exception):
    """A run that was asked to stop by a signal has saved its state and is not finished; running it again goes on.

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
    """Work that was left because a host is asked to stop, by the signal of this number."""

    def __init__(self, signal_number: int):
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


def in_float32(value: float | int | np.number) -> bool:
    """Whether float32, in which programs compute, has the number: not as infinity, nor as 0 if it is not."""
    with np.errstate(over="ignore"):
        seen = float(np.float32(value))
    return math.isfinite(seen) and (seen == 0) == (value == 0)
