"""Plan of a traced program: compiled for a target, with its memory, time, collectives and kernels."""

import re
import time

import jax

from train_jax import profiling
from train_jax.plan import hlo
from train_jax.plan.program import Program
from train_jax.plan.report import Plan
from train_jax.plan.targets import Target

_EXPENSIVE = 10  # operations in the report
_NEEDED = re.compile(r"total memory required[^(]*\((\d+(?:\.\d+)?)([KMG])\)|(?:Used|Reserved) (\d+(?:\.\d+)?)([KMG])")


def plan_program(program: Program, target: Target) -> Plan:
    """Compiles a program for a target and plans its memory and time. A program that does not fit has the plan's `error`."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(program.mesh):
            compiled, message = program.traced.lower().compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, message = None, " ".join(str(error).split())
    seconds = time.perf_counter() - start
    parts, arguments = dict(program.parts), 0
    if compiled is None:
        text, peak_bytes = "", _parse_needed(message)
    else:
        text, memory = compiled.as_text(), profiling.memory_plan(compiled)
        arguments = memory.arguments
        parts |= {"temporaries": memory.temporaries, "program": memory.code}
        peak_bytes = memory.needed + max(0, program.held - arguments)
    instructions = hlo.parse(text) if text else []
    chip, peak = target.chip, target.chip.peak_flops
    cycles = hlo.total_cycles(instructions) if chip.clock else 0
    bytes_read = program.passes * arguments
    return Plan(
        target=target.name,
        program=program.name,
        devices=program.mesh.size,
        mesh=dict(program.mesh.shape),
        unit=program.unit,
        batch_size=program.units,
        fits=False if message else (peak_bytes <= chip.memory if chip.memory else None),
        peak_bytes=peak_bytes,
        memory=chip.memory,
        parts=parts,
        parameters=program.parameters,
        flops=program.flops,
        bytes_read=bytes_read or None,
        step_seconds=cycles / chip.clock if cycles else None,
        floor_seconds=program.flops / (peak * program.mesh.size) if peak and program.flops else None,
        read_seconds=bytes_read / chip.bandwidth if chip.bandwidth and bytes_read else None,
        collectives=tuple(hlo.collectives(instructions)),
        kernels=hlo.kernels(instructions),
        expensive=tuple((name, n / (chip.clock or 1)) for name, n in hlo.most_expensive(instructions, _EXPENSIVE)),
        unknown_loops=hlo.unknown_loops(text) if text else 0,
        compile_seconds=seconds,
        error=message[:300],
    )


def _parse_needed(message: str) -> int:
    """Reads the required memory from the message of a compiler that ran out of memory; 0 if it does not say it."""
    match = _NEEDED.search(message)
    if not match:
        return 0
    size, unit = filter(None, match.groups())
    return int(float(size) * 2.0 ** {"K": 10, "M": 20, "G": 30}[unit])
