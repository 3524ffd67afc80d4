"""Statistics of a compiled program from its HLO text: estimated time by operation, collectives, kernels, loops."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "f8e4m3fn": 1, "f8e5m2": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2,
         "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Kernels among the custom calls; the others are annotations and parts of the compiler.
_KERNELS = re.compile(r"cudnn|cublas|cusolver|triton|flash|fmha|tpu_custom_call|mosaic|top_?k|sort", re.I)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_LIMIT = re.compile(r"= s(?:32|64)\[\]\S* constant\((\d+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)"?')
_UNKNOWN = 2**63 - 1  # what libtpu writes where it has no estimate
_CHANNEL = re.compile(r"channel_id=(\d+)")
_FIRST_OPERAND = re.compile(r"%?([\w.-]+)")
_COMPUTING = {"fusion", "fusion-start", "custom-call", "dot", "convolution", "while", "call", "conditional"}
_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"|"kind":"(__\w+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Instruction of a compiled program.

    Attributes:
      opcode: such as "fusion", "while", "all-reduce-start".
      shape: text of the shape of its result, such as "bf16[8,128]{1,0}" or a tuple of them.
      attributes: text behind the operands: metadata, backend config, called computations.
      executions: how often one execution of the program runs it: the product of the trip counts of the loops around it,
        divided by the number of branches of each conditional around it, which are taken to be equally frequent.
      in_loop: whether it stands in the body of a loop.
      in_fusion: whether it is a part of a fusion, whose time counts for all its parts.
    """

    name: str
    opcode: str
    shape: str
    attributes: str
    executions: float
    in_loop: bool
    in_fusion: bool

    @property
    def op_name(self) -> str:
        """Path of the JAX operation, such as "jit(step)/jvp(CLIP)/vision/…/dot_general"; empty if it is not recorded."""
        match = _NAME.search(self.attributes)
        return match[1] if match else ""

    @property
    def cycles(self) -> int:
        """Cycles of all executions as the TPU compiler estimates them; 0 if it gives no estimate."""
        match = None if self.in_fusion else _CYCLES.search(self.attributes)
        return round(int(match[1]) * self.executions) if match and int(match[1]) < _UNKNOWN else 0

    @property
    def size(self) -> int:
        """Size of the result in bytes; of an asynchronous start, that of the results, without operands and contexts."""
        shapes = _ARRAY.findall(self.shape)
        is_pair = self.opcode.endswith("-start") and self.opcode != "all-reduce-start"
        if is_pair:  # (operands, results, scalar contexts)
            shapes = [(kind, dims) for kind, dims in shapes if dims]
            shapes = shapes[len(shapes) // 2 :]
        return int(sum(BYTES.get(kind, 0) * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in shapes))


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind: how many one execution runs, and the bytes of their results on a device.

    Attributes:
      overlapped: how many of them run while the device computes, as the compiler schedules them.
    """

    kind: str
    in_loop: bool
    count: int
    bytes: int
    overlapped: int = 0


def parse(text: str) -> list[Instruction]:
    """Parses the text of a compiled program (`Compiled.as_text()`). Returns the instructions that are executed."""
    computations, entry = _split_computations(text)
    executions: dict[str, float] = collections.defaultdict(float, {entry: 1.0})
    in_loop, in_fusion = set(), set()
    instructions: list[Instruction] = []
    for name in _callers_first(computations, entry):
        for line in computations[name]:
            instruction, called = _parse_instruction(line, executions[name], name in in_loop, name in in_fusion)
            instructions.append(instruction)
            trips = (_count_trips(line, computations) or 1) if instruction.opcode == "while" else 1
            branches = len(called) if instruction.opcode == "conditional" else 1
            for callee in called:
                executions[callee] += executions[name] * trips / branches
                if instruction.opcode == "while" or name in in_loop:
                    in_loop.add(callee)
                if instruction.opcode in ("fusion", "reduce", "scatter", "sort", "map") or name in in_fusion:
                    in_fusion.add(callee)
    return instructions


def _count_trips(line: str, computations: dict[str, list[str]]) -> int | None:
    """Returns the trip count of a loop; None if it is unknown.

    GPU and CPU compilers record it. Otherwise it is the only constant of the condition, which bounds a counter from 0 on,
    as in the loops of `jax.lax.scan`.
    """
    if match := _TRIPS.search(line):
        return int(match[1])
    condition = "\n".join(computations.get(_CONDITION.search(line)[1], ()))
    condition += "\n".join(line for name in _called(condition) for line in computations.get(name, ()))
    limits = set(_LIMIT.findall(condition))
    return int(limits.pop()) if len(limits) == 1 and "direction=LT" in condition else None


def unknown_loops(text: str) -> int:
    """Counts the loops of a program whose trip count is unknown, and whose bodies `parse` counts once."""
    computations, _ = _split_computations(text)
    loops = [line for lines in computations.values() for line in lines if " while(" in line]
    return sum(_count_trips(line, computations) is None for line in loops)


def _split_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Splits a program into the lines of its computations by name. Returns them and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if not line.startswith(" ") and (match := _COMPUTATION.match(line)):
            name = match[2]
            computations[name] = []
            entry = name if match[1] else entry
        elif name and _INSTRUCTION.match(line):
            computations[name].append(line)
    if not entry:
        raise ValueError("the text of the program has no ENTRY computation")
    return computations, entry


def _called(line: str) -> list[str]:
    names = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return names


def _callers_first(computations: dict[str, list[str]], entry: str) -> Iterator[str]:
    """Yields the computations that are reached from the entry, each after all its callers."""
    callees = {name: [*filter(computations.__contains__, _called("\n".join(lines)))] for name, lines in computations.items()}
    order, visited, stack = [], {entry}, [(entry, iter(callees[entry]))]
    while stack:
        name, remaining = stack[-1]
        callee = next((c for c in remaining if c not in visited), None)
        if callee is None:
            order.append(name)
            stack.pop()
        else:
            visited.add(callee)
            stack.append((callee, iter(callees[callee])))
    return reversed(order)


def _parse_instruction(line: str, executions: float, in_loop: bool, in_fusion: bool) -> tuple[Instruction, list[str]]:
    name, rest = _INSTRUCTION.match(line).groups()
    shape, rest = _split_shape(rest)
    opcode, _, rest = rest.partition("(")
    instruction = Instruction(name, opcode.strip(), shape, rest, executions, in_loop, in_fusion)
    return instruction, [] if instruction.opcode in _REDUCERS else _called(rest)


# Their `to_apply` is a sum or a maximum of two numbers.
_REDUCERS = {*COLLECTIVES, *(f"{kind}-start" for kind in COLLECTIVES), "reduce", "reduce-window", "scatter",
             "select-and-scatter", "sort", "map"}  # fmt: skip


def _split_shape(text: str) -> tuple[str, str]:
    """Splits the shape, which may be a tuple with parentheses of layouts in it, from what follows."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: position + 1], text[position + 2 :]
    raise ValueError(f"unbalanced parentheses: {text[:100]}")


def collectives(instructions: list[Instruction]) -> list[Collective]:
    """Adds up collectives by kind, those in loops apart, the largest first.

    The TPU compiler distributes an asynchronous collective over fusions, which share its channel: the first starts it, the
    last waits, and those between them compute. It counts once.
    """
    totals: dict[tuple[str, bool], list[float]] = collections.defaultdict(lambda: [0, 0, 0])
    parts: dict[str, list[Instruction]] = collections.defaultdict(list)
    overlapped = _find_overlapped(instructions)
    for x in instructions:
        if x.opcode.removesuffix("-start") not in COLLECTIVES:
            continue
        channel = _CHANNEL.search(x.attributes)
        if x.in_fusion and channel:
            parts[channel[1]].append(x)
        else:
            _add(totals, x, x.name in overlapped)
    for group in parts.values():
        _add(totals, group[0], len(group) > 2)
    rows = [Collective(*key, *map(round, total)) for key, total in totals.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _add(totals: dict[tuple[str, bool], list], x: Instruction, is_overlapped: bool) -> None:
    total = totals[x.opcode.removesuffix("-start"), x.in_loop]
    total[0] += x.executions
    total[1] += x.executions * x.size
    total[2] += x.executions * is_overlapped


def _find_overlapped(instructions: list[Instruction]) -> set[str]:
    """Returns the names of the asynchronous collectives between whose start and end there is computation."""
    started: dict[str, int] = {}  # name -> computations up to its start
    overlapped, computed = set(), 0
    for x in instructions:
        if x.opcode in _COMPUTING and not x.in_fusion:
            computed += 1
        elif x.opcode.endswith("-start") and x.opcode.removesuffix("-start") in COLLECTIVES:
            started[x.name] = computed
        elif x.opcode.endswith("-done") and (match := _FIRST_OPERAND.match(x.attributes)) and match[1] in started:
            overlapped |= {match[1]} if computed > started[match[1]] else set()
    return overlapped


def kernels(instructions: list[Instruction]) -> dict[str, int]:
    """Counts the executions of library, Triton and Pallas kernels by name: custom calls, and fusions of a kind."""
    counts: collections.Counter = collections.Counter()
    for x in instructions:
        target = _TARGET.search(x.attributes) if x.opcode in ("custom-call", "fusion") else None
        name = target[1] or target[2] if target else ""
        if _KERNELS.search(name):
            counts[name] += x.executions
    return {name: round(count) for name, count in counts.most_common()}


def total_cycles(instructions: list[Instruction]) -> int:
    """Returns the estimated cycles of one execution of the program."""
    return sum(x.cycles for x in instructions)


def most_expensive(instructions: list[Instruction], count: int) -> list[tuple[str, int]]:
    """Returns the operations with most estimated cycles, as `(path of the JAX operation, cycles)`."""
    totals: collections.Counter = collections.Counter()
    for x in instructions:
        totals[x.op_name or x.name] += x.cycles
    return [(name, cycles) for name, cycles in totals.most_common(count) if cycles]
