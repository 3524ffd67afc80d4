"""Before anything runs: the step is compiled, its memory plan read, and where it exceeds the budget, its cuts are split.

What a step computes stays the same: parts of the cuts go through CLIP one after the other, and are computed again in the
backward pass; the decoder may be, too.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from train_jax.errors import ConfigError
from train_jax.profiling import MemoryPlan, memory_plan

log = logging.getLogger(__name__)


class Fit(NamedTuple):
    """A compiled program, how its cuts are split, and what it needs on each device."""

    program: jax.stages.Compiled
    micro: int
    remat: bool
    plan: MemoryPlan


def fit(compile_with: Callable[[int, bool], jax.stages.Compiled], cuts: int, devices: int, budget: float | int) -> Fit:
    """The first program within the budget, from the fastest to the most frugal.

    Args:
      compile_with: `(cuts together, remat) -> program`.
      devices: over which cuts are divided; parts stay divisible by them where all cuts are.
      budget: GiB a device.

    Raises ConfigError if none is, naming what the most frugal needs.
    """
    for micro, remat in candidates(cuts, devices):
        program = compile_with(micro, remat)
        found = Fit(program, micro, remat, memory_plan(program))
        needed = found.plan.total / 2**30
        log.info("%d of %d cuts together%s: %.2f GiB a device", micro, cuts, ", remat" if remat else "", needed)
        if needed <= budget:
            return found
    raise ConfigError(
        f"memory = {budget:g} GiB a device: the most frugal step needs {needed:.2f} GiB. Paint a smaller size, or fewer "
        "pictures at once"
    )


def candidates(cuts: int, devices: int) -> Iterator[tuple[int, bool]]:
    """Ways to split: all cuts; all, with the decoder computed again; and so with ever fewer cuts."""
    least = devices if cuts % devices == 0 else 1
    yield cuts, False
    micro = cuts
    while True:
        yield micro, True
        smaller = [m for m in range(least, micro // 2 + 1, least) if cuts % m == 0]
        if not smaller:
            return
        micro = smaller[-1]
