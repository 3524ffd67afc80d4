"""Memory of a step: it is compiled and its memory plan read before it runs; beyond the budget, its cuts are split.

Splitting does not change what a step computes: parts of the cuts go through CLIP one after the other and are computed again
in the backward pass; so may be the decoder.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from train_jax import memory as free_memory
from train_jax.errors import ConfigError
from train_jax.profiling import MemoryPlan, memory_plan
from vqgan_jax.vqgan import Vqgan

log = logging.getLogger(__name__)


class FittedProgram(NamedTuple):
    """A compiled program, how its cuts are split, and the memory that it needs on each device."""

    program: jax.stages.Compiled
    micro_cuts: int
    remat: bool
    plan: MemoryPlan


def fit_to_budget(
    compile_with: Callable[[int, bool], jax.stages.Compiled], cuts: int, devices: int, budget: float | int
) -> FittedProgram:
    """The first program within the budget, from the fastest to the most frugal.

    Args:
      compile_with: `(micro_cuts, remat) -> program`.
      devices: over which cuts are divided; parts stay divisible by them where all cuts are.
      budget: GiB a device.

    Raises ConfigError if there is none, with what the most frugal needs.
    """
    for micro_cuts, remat in candidates(cuts, devices):
        program = compile_with(micro_cuts, remat)
        fitted = FittedProgram(program, micro_cuts, remat, memory_plan(program))
        needed = fitted.plan.needed / 2**30
        log.info("%d of %d cuts together%s: %.2f GiB a device", micro_cuts, cuts, ", remat" if remat else "", needed)
        if needed <= budget:
            return fitted
    raise ConfigError(
        f"memory = {budget:g} GiB a device: the most frugal step needs {needed:.2f} GiB. Paint a smaller size, or fewer "
        "pictures at once"
    )


def check_decoder(vq: Vqgan, size: tuple[int, int], paintings: int, mesh: Mesh) -> None:
    """ConfigError for pictures too large to be decoded by any program in the free memory; costs only a trace.

    Args:
      size: height and width in pixels.
      paintings: decoded at once, over the devices of `mesh`.
    """
    codes = jax.ShapeDtypeStruct((1, size[0] // vq.factor, size[1] // vq.factor), jnp.int32)
    decode = functools.partial(vq.module.apply, method="decode")
    # A convolution's input and output are held at once.
    needed = 2 * free_memory.largest_array(decode, vq.variables, codes) * math.ceil(paintings / mesh.size)
    subject = f"decoding {paintings} picture(s) of {size[0]} x {size[1]} takes at least"
    free_memory.require(needed, mesh.local_devices[0], subject, "paint a smaller size, or fewer pictures at once")


def check_plan(plan: MemoryPlan, mesh: Mesh) -> None:
    """ConfigError for a compiled step that needs more than the free memory; its arguments are on the device already."""
    remedy = "split the cuts (memory, or --memory, in GiB a device), paint a smaller size, or fewer pictures at once"
    free_memory.require(plan.needed - plan.arguments, mesh.local_devices[0], "a step takes", remedy)


def candidates(cuts: int, devices: int) -> Iterator[tuple[int, bool]]:
    """Splits `(micro_cuts, remat)` by decreasing speed: all cuts; all with remat; then fewer and fewer with remat."""
    smallest = devices if cuts % devices == 0 else 1
    yield cuts, False
    micro_cuts = cuts
    while True:
        yield micro_cuts, True
        smaller = [m for m in range(smallest, micro_cuts // 2 + 1, smallest) if cuts % m == 0]
        if not smaller:
            return
        micro_cuts = smaller[-1]
