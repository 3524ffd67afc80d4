"""Memory planning: a step is compiled and its memory plan checked before it runs; cutouts are split to fit a budget.

Splitting does not change the result of a step: CLIP encodes micro-batches of cutouts sequentially and recomputes them
in the backward pass. The decoder can be recomputed as well (`remat`).
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
    """A compiled program with its micro-batch size, its rematerialisation and its memory plan per device."""

    program: jax.stages.Compiled
    micro_cuts: int
    remat: bool
    plan: MemoryPlan


def fit_to_budget(
    compile_with: Callable[[int, bool], jax.stages.Compiled], cuts: int, devices: int, budget: float | int
) -> FittedProgram:
    """Returns the fastest program whose memory plan is within the budget.

    Args:
      compile_with: `(micro_cuts, remat) -> program`.
      devices: number of devices that share the cutouts. If it divides `cuts`, it divides every micro-batch.
      budget: GiB per device.

    Raises ConfigError with the smallest requirement if no program fits.
    """
    for micro_cuts, remat in candidate_splits(cuts, devices):
        program = compile_with(micro_cuts, remat)
        fitted = FittedProgram(program, micro_cuts, remat, memory_plan(program))
        needed = fitted.plan.needed / 2**30
        log.info("%d of %d cuts at a time%s: %.2f GiB per device", micro_cuts, cuts, ", remat" if remat else "", needed)
        if needed <= budget:
            return fitted
    raise ConfigError(
        f"memory = {budget:g} GiB per device: the most memory-efficient step needs {needed:.2f} GiB. Paint a smaller "
        "size, or fewer images at once"
    )


def check_decoder(vq: Vqgan, size: tuple[int, int], paintings: int, mesh: Mesh) -> None:
    """Raises ConfigError if the free memory is too small to decode the images. The check only traces the decoder.

    Args:
      size: height and width in pixels.
      paintings: number of paintings that are decoded at once, divided over the devices of `mesh`.
    """
    codes = jax.ShapeDtypeStruct((1, size[0] // vq.factor, size[1] // vq.factor), jnp.int32)
    decode = functools.partial(vq.module.apply, method="decode")
    # A convolution holds its input and output at the same time.
    needed = 2 * free_memory.largest_array(decode, vq.variables, codes) * math.ceil(paintings / mesh.size)
    subject = f"decoding {paintings} image(s) of {size[0]} x {size[1]} takes at least"
    free_memory.require(needed, mesh.local_devices[0], subject, "paint a smaller size, or fewer images at once")


def check_plan(plan: MemoryPlan, mesh: Mesh) -> None:
    """Raises ConfigError if a compiled step needs more than the free memory.

    The step's arguments are on the device already and do not count.
    """
    remedy = "split the cuts (memory, or --memory, in GiB per device), paint a smaller size, or fewer images at once"
    free_memory.require(plan.needed - plan.arguments, mesh.local_devices[0], "a step takes", remedy)


def candidate_splits(cuts: int, devices: int) -> Iterator[tuple[int, bool]]:
    """Yields pairs `(micro_cuts, remat)` in order of decreasing speed and memory.

    The first pair is all cutouts without remat; all others have remat, with decreasing micro-batches.
    """
    unit = devices if cuts % devices == 0 else 1
    yield cuts, False
    micro_cuts = cuts
    while True:
        yield micro_cuts, True
        smaller = [m for m in range(unit, micro_cuts // 2 + 1, unit) if cuts % m == 0]
        if not smaller:
            return
        micro_cuts = smaller[-1]
