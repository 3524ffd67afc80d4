"""Before anything runs: the step is compiled, its memory plan read, and where it exceeds the budget, its cuts are split.

What a step computes stays the same: parts of the cuts go through CLIP one after the other, and are computed again in the
backward pass; the decoder may be, too.
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
        needed = found.plan.needed / 2**30
        log.info("%d of %d cuts together%s: %.2f GiB a device", micro, cuts, ", remat" if remat else "", needed)
        if needed <= budget:
            return found
    raise ConfigError(
        f"memory = {budget:g} GiB a device: the most frugal step needs {needed:.2f} GiB. Paint a smaller size, or fewer "
        "pictures at once"
    )


def check_decoder(vq: Vqgan, size: tuple[int, int], paintings: int, mesh: Mesh) -> None:
    """ConfigError for pictures that no program could decode in the memory there is; costs nothing but a trace.

    Args:
      size: height and width in pixels.
      paintings: decoded at once, over the devices of `mesh`.
    """
    codes = jax.ShapeDtypeStruct((1, size[0] // vq.factor, size[1] // vq.factor), jnp.int32)
    decode = functools.partial(vq.module.apply, method="decode")
    # A convolution's input and output are there at once.
    needed = 2 * free_memory.largest_array(decode, vq.variables, codes) * math.ceil(paintings / mesh.size)
    what = f"decoding {paintings} picture(s) of {size[0]} x {size[1]} takes at least"
    free_memory.require(needed, mesh.local_devices[0], what, "paint a smaller size, or fewer pictures at once")


def check_plan(plan: MemoryPlan, mesh: Mesh) -> None:
    """ConfigError for a compiled step that takes more memory than there is beside its arguments, which are there already."""
    remedy = "split the cuts (memory, or --memory, in GiB a device), paint a smaller size, or fewer pictures at once"
    free_memory.require(plan.needed - plan.arguments, mesh.local_devices[0], "a step takes", remedy)


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
