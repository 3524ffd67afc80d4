"""Training of several runs together, in one program whose arrays have a first axis of runs.

Runs share a program if their traced training steps differ only in numbers (`train_jax.sweep.unify`): rates, decays, weights
of losses, temperatures, lengths of schedules, seeds. Each run has its own directory, metrics, evaluations and checkpoints,
as if it were trained alone.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from train_jax import feed, memory, profiling, program_cache
from train_jax.environment import record_start
from train_jax.errors import ConfigError, Interrupted, Stopped
from train_jax.lockstep import AHEAD
from train_jax.ownership import Ownership
from train_jax.paths import AnyPath
from train_jax.preemption import StopRequest
from train_jax.prepare import Prepared, prepare
from train_jax.record import Record
from train_jax.step import NOTICE, TrainState
from train_jax.sweep.unify import Mismatch, unify

log = logging.getLogger(__name__)

_AXIS = "runs"
# Options that the examples of a stream do not depend on: runs that differ only in these read one stream.
_NOT_OF_EXAMPLES = ("optim", "ema", "steps", "log_every", "checkpoint", "evals", "hooks", "accumulate")


@dataclasses.dataclass(eq=False)
class Member:
    """One of the runs that are trained together.

    Attributes:
      state: its training state; None while it is a row of the state of a program.
      step: number of its updates.
      ownership: lock on the run directory.
      files: closes the files of the run directory.
      error: error that ended the run; None while there is none.
    """

    name: str
    workdir: AnyPath
    prepared: Prepared
    record: Record
    ownership: Ownership
    files: contextlib.ExitStack
    state: TrainState | None = None
    step: int = 0
    error: Exception | None = None

    @property
    def steps(self) -> int:
        """Number of updates at which the run ends."""
        return self.prepared.config.steps


class Program(NamedTuple):
    """Update of all runs of a group.

    Attributes:
      function: update of one run, `(numbers, state and batch as a list) -> state and metrics as a list`.
      numbers: the numbers that differ, each with a first axis of runs.
      results: structure of the results.
    """

    function: Callable
    numbers: list[Any]
    results: Any

    @classmethod
    def of(cls, steps: Sequence[jax.stages.Traced]) -> "Program":
        """Makes the program of traced training steps that differ only in numbers. Raises Mismatch for others."""
        return cls(*unify([step.jaxpr for step in steps]), jax.tree.structure(steps[0].out_info))

    def update(self, numbers: list, state: TrainState, batch: Mapping[str, Any]):
        """Updates one run, whose numbers are a row of `numbers`. Returns its state and metrics."""
        return jax.tree.unflatten(self.results, self.function(numbers, jax.tree.leaves((state, batch))))


def train_together(
    runs: Mapping[str, tuple[ConfigDict, AnyPath]],
    on_failure: Callable[[str, Exception], None],
    cache: AnyPath | None = None,
) -> None:
    """Trains runs together, each from its newest checkpoint to its last update.

    Args:
      runs: name -> (config, run directory). Runs that cannot share a program are trained in groups, one after the other.
      on_failure: called with the name and the error of a run that cannot be prepared, or that fails; the others go on.
      cache: folder of compiled programs, so that the evaluations of all runs are compiled once; None: that of a run alone.

    The axis of runs is split over as many devices as divide the number of runs; one device computes a run. The speed in the
    metrics of a run is that of its own examples, so that the program's is their sum.

    Raises ConfigError on several hosts, and Stopped after a stop signal, with all runs saved.
    """
    if jax.process_count() > 1:
        raise ConfigError("runs train together on one host: start the sweep on one, or without --together")
    program_cache.enable(jax.devices()[0].platform, cache)
    peak_flops = profiling.peak_flops(jax.devices()[:1])
    with StopRequest() as stop, contextlib.ExitStack() as stack:
        members = []
        for name, (config, workdir) in runs.items():
            try:
                members.append(member := _prepare_member(name, config, workdir, peak_flops, stop))
                stack.callback(_close, member, on_failure)
            except Interrupted as interrupted:
                raise Stopped(0, interrupted.signal_number) from interrupted
            except Exception as error:
                if not stop.signal_number:  # Ctrl-C also ends the data workers, which is not an error
                    on_failure(name, error)
            if stop.signal_number:
                raise Stopped(0, stop.signal_number)
        for group, program in _group(members):
            names = ", ".join(member.name for member in group)
            log.info("%d runs share a program; %d numbers differ: %s", len(group), len(program.numbers), names)
            _Group(group, program, stop, on_failure).run()
            for member in group:
                member.state = None  # the next group needs the memory
                _close(member, on_failure)


def _prepare_member(
    name: str, config: ConfigDict, workdir: AnyPath, peak_flops: float | None, stop: StopRequest
) -> Member:
    """Prepares a run for one device and locks its directory."""
    prepared = prepare(config, workdir, devices=jax.devices()[:1], asked_to_stop=lambda: stop.signal_number)
    if prepared.config.mirrors:  # of which a process has one at a time
        raise ConfigError("config.mirrors: runs that train together have none; start the sweep without --together")
    files = contextlib.ExitStack()
    try:
        ownership = files.enter_context(contextlib.closing(Ownership(workdir)))
        return Member(name, workdir, prepared, Record(prepared, workdir, files, peak_flops), ownership, files)
    except BaseException:
        files.close()
        raise


def _close(member: Member, on_failure: Callable[[str, Exception], None]) -> None:
    """Closes the files of a run, once. A failed last save is a failure of this run alone."""
    try:
        member.files.close()
    except Exception as error:
        if member.error is not None:  # which tells more than what followed from it
            log.error("%s: %s", member.name, error)
        else:
            member.error = error
            on_failure(member.name, error)


def _group(members: Sequence[Member]) -> list[tuple[list[Member], Program]]:
    """Groups runs whose training steps differ only in numbers, in the order of the first of each group."""
    steps = [member.prepared.step for member in members]
    # Operations have no names: equal ones may belong to other metrics or parameters.
    names = [(jax.tree.structure(step.in_avals), jax.tree.structure(step.out_info)) for step in steps]
    groups = _group_traces([step.jaxpr for step in steps], names)
    return [([members[index] for index in group], Program.of([steps[index] for index in group])) for group in groups]


def _group_traces(traces: Sequence[ClosedJaxpr], names: Sequence | None = None) -> list[list[int]]:
    """Groups the indices of traced functions that differ only in numbers, and have equal `names`."""
    groups: list[list[int]] = []
    for index, trace in enumerate(traces):
        for group in groups:
            if names is not None and names[index] != names[group[0]]:
                continue
            try:
                unify([traces[group[0]], trace])
            except Mismatch as mismatch:
                log.debug("function %d differs from function %d: %s", index, group[0], mismatch)
                continue
            group.append(index)
            break
        else:
            groups.append([index])
    return groups


def _create_states(members: Sequence[Member]) -> list[TrainState]:
    """Creates the initial states of runs, those that differ only in numbers by one program."""
    traces, states = [], {}
    for member in members:
        with jax.set_mesh(member.prepared.mesh):
            traces.append(jax.make_jaxpr(member.prepared.state.init)())
    for group in _group_traces(traces):
        function, numbers = unify([traces[index] for index in group])
        structure = jax.tree.structure(members[group[0]].prepared.state.abstract)

        def create(numbers: list, function=function, structure=structure) -> TrainState:
            return jax.tree.unflatten(structure, function(numbers, []))

        stacked = jax.jit(jax.vmap(create, axis_size=len(group)))(numbers)
        states |= {index: _take(stacked, row, members[index]) for row, index in enumerate(group)}
    return [states[index] for index in range(len(members))]


class _Group:
    """Training loop of runs that share a program.

    Runs that resume from different updates first train without the others until they meet them, and a run that ends
    earlier leaves the program.
    """

    def __init__(
        self, members: Sequence[Member], program: Program, stop: StopRequest, on_failure: Callable[[str, Exception], None]
    ):
        self._members, self._program, self._stop, self._on_failure = members, program, stop, on_failure

    def run(self) -> None:
        """Trains all runs to their last updates. An error that is of no single run ends all that have not finished."""
        try:
            self._restore()
            while active := [member for member in self._members if member.error is None and member.step < member.steps]:
                start = min(member.step for member in active)
                current = [member for member in active if member.step == start]
                ends = [member.steps for member in current] + [member.step for member in active if member.step > start]
                with self._paused([member for member in active if member not in current]):
                    self._train(current, min(ends))
        except Stopped:
            raise
        except Exception as error:  # such as a program that exceeds the memory; other groups may be smaller
            self._fail_all([member for member in self._members if member.step < member.steps], error)

    def _restore(self) -> None:
        """Restores the newest checkpoints, and runs evaluations that are missing. Initial states are made by one program."""
        fresh = [m for m in self._members if m.record.checkpoints.latest is None and m.prepared.state.init]
        states = dict(zip((member.name for member in fresh), _create_states(fresh), strict=True))
        for index, member in enumerate(self._members):
            create = functools.partial(states.pop, member.name) if member.name in states else None
            try:
                with jax.set_mesh(member.prepared.mesh):
                    member.state, member.step = member.record.restore(
                        member.prepared.stream,
                        create=create,
                        shows_progress=index == 0,  # which is that of all
                    )
                if member.record.lacks_results(member.step):
                    self._evaluate(member, member.state, [member], member.step)
            except Interrupted as interrupted:
                raise Stopped(member.step, interrupted.signal_number) from interrupted
            except Exception as error:  # such as the checkpoint of another optimiser
                self._fail(member, error)

    def _train(self, current: Sequence[Member], end: int) -> None:
        """Trains runs that are at the same update until update `end`, and leaves their states in `Member.state`."""
        devices = _choose_devices(len(current))
        mesh = Mesh(devices, (_AXIS,))
        rows, whole = NamedSharding(mesh, P(_AXIS)), NamedSharding(mesh, P())
        is_shared = _shares_stream(current)
        streams = _Streams([current[0].prepared.stream] if is_shared else [m.prepared.stream for m in current], is_shared)
        batches = feed.Prefetch(
            streams, lambda batch: jax.device_put(batch, whole if is_shared else rows), depth=AHEAD + 1
        )
        try:
            batch = batches.peek()
        except Exception as error:
            for index, member in enumerate(current):  # back from the batches that the other streams have yielded
                member.prepared.stream.set_state(_position(batches, index).get_state())
                member.record.save(member.step, member.state, member.prepared.stream)
            self._raise_stop(current[0].step, error)
            self._fail_reader(current, streams, error)
            return
        indices = np.array([self._members.index(member) for member in current])
        with self._paused(current):
            numbers = jax.device_put([number[indices] for number in self._program.numbers], rows)
            state = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *(jax.device_get(m.state) for m in current)), rows)
            for member in current:
                member.state = None  # only one copy stays on the device
            compiled = self._compile(numbers, state, batch, mesh, is_shared)
        for member in current:
            record_start(member.workdir, member.prepared, compiled, member.step, runs=len(current))
        in_flight: collections.deque = collections.deque()
        step = current[0].step
        try:
            while step < end:
                if len(in_flight) == AHEAD:
                    finished = jax.device_get(in_flight.popleft())
                    for member, error in self._check(current, step - AHEAD + 1, finished):
                        if member.ownership.error is None:
                            self._save([member], current, step, state, batches)
                        self._fail(member, error)
                if self._stop.signal_number:
                    raise Interrupted(self._stop.signal_number)
                state, metrics = compiled(numbers, state, next(batches))
                in_flight.append(metrics)
                step += 1
                self._finish_update(current, step, state, metrics, batches)
        except Interrupted as interrupted:
            self._save(current, current, step, state, batches)
            raise Stopped(step, interrupted.signal_number) from interrupted
        except Exception as error:  # such as unreadable data
            try:
                self._save(current, current, step, state, batches)
            except Exception as unsaved:  # such as memory that the failed update held
                log.error("update %d could not be saved: %s", step, unsaved)
            self._raise_stop(step, error)
            if error is not batches.error:
                raise
            self._fail_reader(current, streams, error)
        for index, member in enumerate(current):
            if member.error is None and step < member.steps:
                member.state = _take(state, index, member)
                # Back from the batches that were read ahead.
                member.prepared.stream.set_state(_position(batches, index).get_state())
            member.step = step

    def _finish_update(self, current: Sequence[Member], step: int, state, metrics, batches: feed.Prefetch) -> None:
        """Logs, evaluates and saves the runs for which this is due after an update.

        All are logged before the first is evaluated: a signal that interrupts an evaluation ends them all at this update.
        """
        states = {}
        for index, member in enumerate(current):
            if member.error is not None:
                continue
            config, record = member.prepared.config, member.record
            is_logged = step % config.log_every == 0 or step == member.steps
            is_seen = is_logged or self._is_saved(member, step) or member.prepared.hooks
            if not (is_seen or member.prepared.evaluations.due(step)):
                continue
            states[index] = _take(state, index, member)
            try:
                record.update(step, states[index])
                if is_logged:
                    record.log(step, states[index], {name: x[index] for name, x in jax.device_get(metrics).items()})
            except Exception as error:
                self._fail(member, error)
        for index, own in states.items():
            member = current[index]
            try:
                if member.error is None:
                    self._evaluate(member, own, current, step)
            except Interrupted:
                raise
            except Exception as error:
                self._fail(member, error)
            # Also after an error, which may be mended, and the run resumed.
            if self._is_saved(member, step) or member.error is not None:
                with self._paused(current, member):
                    member.record.save(step, own, _position(batches, index))

    @staticmethod
    def _is_saved(member: Member, step: int) -> bool:
        """Returns whether a checkpoint of a run is due after an update."""
        return step == member.steps or member.record.checkpoints.due(step)

    def _evaluate(self, member: Member, state: TrainState, current: Sequence[Member], step: int) -> None:
        """Runs the evaluators of a run that are due, whose time counts as training of none."""
        with self._paused(current, member), jax.set_mesh(member.prepared.mesh):
            member.record.evaluate(step, state)

    def _save(self, members: Sequence[Member], current: Sequence[Member], step: int, state, batches: feed.Prefetch) -> None:
        """Saves some of the current runs, without those that have failed."""
        for index, member in enumerate(current):
            if member.error is None and member in members:
                member.record.save(step, _take(state, index, member), _position(batches, index))

    def _check(self, current: Sequence[Member], step: int, metrics: Mapping) -> Iterator[tuple[Member, Exception]]:
        """Checks the metrics of a finished update of all runs. Yields the runs that have to end, and why."""
        for index, member in enumerate(current):
            if member.error is not None:
                continue
            try:
                if member.ownership.error is not None:
                    raise member.ownership.error
                member.record.check(step, {name: x[index] for name, x in metrics.items()})
            except Exception as error:
                yield member, error

    def _raise_stop(self, step: int, error: Exception) -> None:
        """Raises Stopped if a stop signal has arrived: Ctrl-C also ends the data workers, which is not an error."""
        if self._stop.signal_number:
            raise Stopped(step, self._stop.signal_number) from error

    def _fail_reader(self, current: Sequence[Member], streams: "_Streams", error: Exception) -> None:
        """Ends the runs whose data cannot be read."""
        failed = None if streams.is_shared else streams.failed
        self._fail_all(current if failed is None else [current[failed]], error)

    def _fail_all(self, members: Sequence[Member], error: Exception) -> None:
        """Ends the runs that have not failed yet."""
        for member in members:
            if member.error is None:
                self._fail(member, error)

    def _fail(self, member: Member, error: Exception) -> None:
        """Ends the run of a member by an error; the others go on."""
        member.error = error
        self._on_failure(member.name, error)

    @contextlib.contextmanager
    def _paused(self, current: Sequence[Member], but: Member | None = None):
        """Excludes the enclosed code from the speed of runs, but of one that excludes it itself."""
        with contextlib.ExitStack() as stack:
            for member in current:
                if member is not but:
                    stack.enter_context(member.record.paused())
            yield

    def _compile(self, numbers: list, state: TrainState, batch: dict[str, Any], mesh: Mesh, is_shared: bool) -> Callable:
        """Compiles the update of all rows of a state. Raises ConfigError if it exceeds the free memory."""
        of_batch = P() if is_shared else P(_AXIS)
        update_all = jax.shard_map(
            jax.vmap(self._program.update, in_axes=(0, 0, None if is_shared else 0)),
            mesh=mesh,
            in_specs=(P(_AXIS), P(_AXIS), of_batch),
            out_specs=P(_AXIS),
            check_vma=False,
        )
        compiled = jax.jit(update_all, donate_argnums=1).lower(numbers, state, batch).compile()
        plan = profiling.memory_plan(compiled)
        log.info("memory of the compiled step per device:\n%s", plan)
        remedy = "start fewer runs at once (--max-runs), or lower config.data.batch_size"
        memory.require(plan.needed, mesh.devices.flat[0], "the compiled step takes", remedy)
        return compiled


class _Streams:
    """Batches of several streams, stacked along a first axis of runs, or those of one stream that the runs share.

    Attributes:
      failed: index of the stream that raised an error; None while there is none.
    """

    def __init__(self, streams: Sequence, is_shared: bool):
        self._streams, self.is_shared = streams, is_shared
        self.failed: int | None = None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batches = []
        for index, stream in enumerate(self._streams):
            try:
                batches.append(dict(next(stream), **{NOTICE: np.zeros(1, np.int32)}))
            except Exception:
                self.failed = index
                raise
        return batches[0] if self.is_shared else {name: np.stack([x[name] for x in batches]) for name in batches[0]}

    def get_state(self) -> list:
        """Returns the positions of all streams."""
        return [stream.get_state() for stream in self._streams]


def _position(batches: feed.Prefetch, index: int) -> SimpleNamespace:
    """Returns the position of a run's stream, as a checkpoint reads it."""
    positions = batches.get_state()
    return SimpleNamespace(get_state=lambda: positions[index if len(positions) > 1 else 0])


def _shares_stream(members: Sequence[Member]) -> bool:
    """Returns whether runs read the same examples in the same order."""
    options = []
    for member in members:
        config = member.prepared.config.to_dict()
        options.append({name: value for name, value in config.items() if name not in _NOT_OF_EXAMPLES})
    positions = [member.prepared.stream.get_state() for member in members]
    return all(x == options[0] for x in options) and all(x == positions[0] for x in positions)


def _choose_devices(count: int) -> list[jax.Device]:
    """Returns as many devices as divide a number of runs."""
    devices = jax.devices()
    return devices[: max(n for n in range(1, len(devices) + 1) if count % n == 0)]


@jax.jit
def _take_row(tree, index: int | jax.Array):
    return jax.tree.map(lambda x: x[index], tree)


def _take(stacked: TrainState, index: int, member: Member) -> TrainState:
    """Returns the state of a run, on the devices of its own mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, member.prepared.state.abstract)
    return jax.device_put(_take_row(stacked, index), shardings)
