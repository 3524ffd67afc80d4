"""Plan of a compiled program: what it needs of each device, and the text of its report."""

import dataclasses
import json

from train_jax.plan.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a program for a target. Bytes are those of one device.

    Attributes:
      target: name of the target.
      program: name of the program, such as "train" or "decode".
      devices: number of devices.
      mesh: sizes of the mesh axes.
      unit: what an execution of the program makes, in the plural, such as "examples" of an update, or "codes".
      batch_size: how many of them, over all devices.
      fits: whether the program fits the memory of a device; None: the memory of the device is unknown.
      peak_bytes: peak memory as the compiler schedules it; on fake devices arguments, outputs and temporaries.
      memory: usable memory of a device; 0: unknown.
      parameters: number of parameters of all players.
      parts: bytes by part. Activations are the residuals of the loss over the micro-batch, without what the partitioner
        adds; they are a share of the temporaries.
      flops: analytic FLOPs of an execution over all devices; None: unknown.
      bytes_read: bytes of its arguments, read whole, in every turn of a sampling loop; None: not counted.
      step_seconds: time of an execution by the compiler's estimated cycles, without exposed communication and custom
        kernels; None: the compiler gives none.
      floor_seconds: time of the FLOPs at the peak rate; None: unknown.
      read_seconds: time to read `bytes_read` at the peak bandwidth; None: unknown.
      collectives: by kind.
      kernels: executions of library and Pallas kernels, by name.
      expensive: paths of the JAX operations with the largest estimated times, and their seconds.
      unknown_loops: number of loops of unknown length, whose bodies are counted once in all of these.
      compile_seconds: time of the compilation.
      error: the compiler's message if it refused the program, otherwise empty.
    """

    target: str
    program: str
    devices: int
    mesh: dict[str, int]
    unit: str
    batch_size: int
    fits: bool | None
    peak_bytes: int
    memory: int
    parts: dict[str, int]
    parameters: int
    flops: float | None
    bytes_read: int | None
    step_seconds: float | None
    floor_seconds: float | None
    read_seconds: float | None
    collectives: tuple[Collective, ...]
    kernels: dict[str, int]
    expensive: tuple[tuple[str, float], ...]
    unknown_loops: int
    compile_seconds: float
    error: str = ""

    @property
    def mfu(self) -> float | None:
        """Planned model FLOPs utilisation."""
        return None if not self.step_seconds or self.floor_seconds is None else self.floor_seconds / self.step_seconds

    @property
    def examples_per_second(self) -> float | None:
        """Planned examples (or images, codes: `unit`) per second and device."""
        return self.batch_size / self.devices / self.step_seconds if self.step_seconds else None

    @property
    def seconds_per_example(self) -> float | None:
        """Planned time per example (or image, code: `unit`) over all devices."""
        return self.step_seconds / self.batch_size if self.step_seconds else None

    def to_json(self) -> str:
        """Formats the plan as one line of JSON."""
        derived = {name: getattr(self, name) for name in ("mfu", "examples_per_second", "seconds_per_example")}
        return json.dumps(dataclasses.asdict(self) | derived)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(plan: Plan):
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "1"
    execution = "an update" if plan.program == "train" else f"a run of {plan.program}"
    made = f"{execution} of {plan.batch_size:,} {plan.unit}"
    yield f"{plan.target}: {plan.devices} devices, mesh {mesh}; {made}; {plan.parameters:,} parameters"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "memory of the device unknown"}[plan.fits]
    limit = f" of {plan.memory / 2**30:.2f}" if plan.memory else ""
    yield f"memory   {verdict}: peak {plan.peak_bytes / 2**30:.2f}{limit} GiB a device"
    if plan.error:
        yield f"         {plan.error}"
    for name, size in plan.parts.items():
        yield f"         {name:<28}{size / 2**20:>12,.1f} MiB"
    if plan.flops is not None:
        floor = f"; at the peak rate {1000 * plan.floor_seconds:,.3f} ms" if plan.floor_seconds else ""
        yield f"compute  {plan.flops / 1e12:,.2f} TFLOPs {execution}{floor}"
    if plan.bytes_read:
        duration = f"; at the peak bandwidth {1000 * plan.read_seconds:,.3f} ms" if plan.read_seconds else ""
        yield f"reads    {plan.bytes_read / 2**30:,.2f} GiB a device if its arguments are read whole{duration}"
    if plan.step_seconds:
        rate = f"{plan.examples_per_second:,.0f} {plan.unit}/s a device"
        if plan.program != "train":
            rate = f"{1000 * plan.seconds_per_example:,.4g} ms for each of the {plan.unit}"
        mfu = f", MFU {100 * plan.mfu:.1f} %" if plan.mfu else ""
        yield f"time     {1000 * plan.step_seconds:,.2f} ms {execution} by the compiler's estimate, {rate}{mfu}"
    elif not plan.error:
        yield "time     no estimate: only TPU compilers give cycles"
    if plan.unknown_loops:
        yield f"         {plan.unknown_loops} loop(s) of unknown length are counted once"
    for row in plan.collectives:
        where = "in loops" if row.in_loop else "once"
        hidden = f", {row.overlapped:,} beside computation" if row.overlapped else ""
        yield f"network  {row.kind:<20} {row.count:>6} {where:<9}{row.bytes / 2**20:>12,.1f} MiB{hidden}"
    yield from (f"kernel   {name:<50} {count:>6}" for name, count in plan.kernels.items())
    yield from (f"costly   {1000 * seconds:>9.3f} ms  {name}" for name, seconds in plan.expensive)
    yield f"compiled in {plan.compile_seconds:.0f} s"
