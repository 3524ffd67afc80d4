"""Checkpoints: training state and data position, saved by Orbax in the background, restored onto any mesh.

A checkpoint is a folder `<step>/`. It appears under that name only when it is complete, so a killed process leaves the ones
before it as they were. One that was damaged later is reported and passed over. Hosts agree on each of these: what is read,
whether all could read it, what is set aside, and whether a save succeeded.
"""

import contextlib
import logging
import os

import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator  # its tests align it in the same way

from train_jax import agreement, optim, paths, resume
from train_jax.errors import ConfigError, Stopped
from train_jax.sharding import path_name

log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Filters out the tracebacks that Orbax logs per thread of a failed save; `Checkpoints` reports the failure in one
    line.
    """
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_news)


class CheckpointError(RuntimeError):
    """Checkpoints exist and none can be read, or the last one of a run could not be written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made if missing; unfinished checkpoints of a killed process are removed.
      every: updates between two checkpoints.
      keep_last: number of newest checkpoints that are kept.
      keep_every: checkpoints whose step is a multiple of this are kept, too; 0: none.
      config: what each checkpoint tells about the run that made it: a dict that JSON can hold.

    On several hosts, all must make the same calls.

    Attributes:
      evaluated: whether the state that was restored had been evaluated, where its turn had come.
    """

    def __init__(self, directory: str | os.PathLike, *, every: int, keep_last: int, keep_every: int = 0, config=None):
        self.evaluated = True
        self._config = config or {}
        self._directory = paths.run_directory(directory)
        self._every = every
        self._failure: tuple[int, Exception] | None = None
        self._saving: tuple[int, ocp.AsyncResponse] | None = None
        policies = [ocp.training.preservation_policies.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.training.preservation_policies.EveryNSteps(keep_every))
        self._open = lambda: ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(policies),
        )
        self._remove_unfinished()
        self._checkpointer = self._open()

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps, default=None)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after this update."""
        return step % self._every == 0

    def save(self, step: int, state, position, *, evaluated: bool = True) -> None:
        """Starts saving; the state may be donated as soon as this returns.

        `position` is anything with `get_state()`: where the data stream stands on this host. A save that fails (a full
        disk) is reported, and the run goes on: the checkpoints before it are untouched.
        """
        self.wait()
        if agreement.from_first(step in self.steps):
            return
        # Hosts take rows of the same global batches, so every host is at the same place.
        about = {"position": position.get_state(), "evaluated": evaluated, "config": self._config}
        failure = None
        try:
            content = _named(state)
            if optim.has_average(state.opt_state):
                # For inference alone, which cannot read an optimiser's state.
                content["average"] = optim.evaluation_params(state.opt_state, state.params)
            self._saving = (step, self._checkpointer.save_async(step, content, force=True, custom_metadata=about))
        except Exception as error:
            failure = error
        self._agree_on_failure(step, failure)

    def wait(self) -> None:
        """Waits for the save under way, if there is one."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        failure = None
        try:
            response.result()
        except Exception as error:
            failure = error
        if not self._agree_on_failure(step, failure) and self._failure is not None:
            # A thread of the failed save may have written on after `_report` had cleared its remains away.
            self._remove_unfinished()
            self._failure = None

    def _agree_on_failure(self, step: int, failure: Exception | None) -> bool:
        """Returns whether saving failed on any host; it then counts as failed on all."""
        failures = _by_process(failure)
        if failures:
            self._saving = None
            self._report(step, failure or agreement.PeerError("; ".join(failures)))
        return bool(failures)

    def _report(self, step: int, error: Exception) -> None:
        self._failure = (step, error)
        log.error(
            "checkpoint %d could not be saved (%s: %s); training goes on, earlier checkpoints are untouched",
            step,
            type(error).__name__,
            first_line(error),
        )
        # What was written of it is removed, and Orbax forgets the failed save, so that the next one starts clean.
        try:
            self._checkpointer.close()  # waits for the threads of the save
        except Exception as again:
            log.debug("closing after the failed save: %s", first_line(again))
        self._remove_unfinished()
        _realign()
        self._checkpointer = self._open()

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for remains in self._directory.glob("*.orbax-checkpoint-tmp*"):
                paths.remove(remains)

    def restore(self, abstract_state, position, *, reset_optimizer: bool = False) -> tuple[object, int] | None:
        """Restores the newest readable state; returns it and its step, or None if there is no checkpoint.

        The optimiser's state is missing with `reset_optimizer`, as are averages that the checkpoint lacks:
        `resume.completed` adds them.

        The arrays come back with the shardings of `abstract_state`, whatever mesh and number of hosts they were
        saved from, and `position.set_state` is called with the position in the data. Raises CheckpointError if there are
        checkpoints and none can be read, ConfigError for one that another optimiser or another model has saved.
        """
        self.wait()
        failures = []
        steps = agreement.from_first(self.steps)
        for step in reversed(steps):
            failure, restored, about = None, None, None
            try:
                restored, about = self._load(step, abstract_state, reset_optimizer)
            except ConfigError:
                raise  # on every host: they read the same
            except Exception as error:
                failure = error
            errors = _by_process(failure)
            if not errors:
                position.set_state(about["position"])
                self.evaluated = about["evaluated"]
                self._set_aside([damaged for damaged in steps if damaged > step])
                return restored, step
            failures.append(f"{self._directory / str(step)}: {'; '.join(errors)}")
            log.error("checkpoint %s cannot be read, trying the one before it", failures[-1])
        if failures:
            _realign()  # a process may go on with another run
            raise CheckpointError("no checkpoint can be read:\n  " + "\n  ".join(failures))
        return None

    def _load(self, step: int, abstract_state, reset_optimizer: bool):
        """Loads a state and the metadata that was saved with it."""
        saved = self._checkpointer.metadata(step)
        about = saved.custom_metadata
        parts = resume.usable(
            saved.metadata, _named(abstract_state), about["config"], self._config, reset_optimizer=reset_optimizer
        )
        with partial_load():
            return _like(abstract_state, self._checkpointer.load(step, parts)), about

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self._directory / f"damaged-{step}"
                paths.remove(aside)
                (self._directory / str(step)).rename(aside)
                log.error("moved the unreadable checkpoint %d to %s", step, aside)
        _realign()
        self._checkpointer.close()
        self._checkpointer = self._open()

    def close(self) -> None:
        """Waits for the save under way. Raises CheckpointError if the last save of the run failed."""
        self.wait()
        self._checkpointer.close()
        if self._failure is not None:
            step, error = self._failure
            raise CheckpointError(
                f"the last checkpoint (step {step}) could not be saved: {first_line(error)}. "
                f"Newest complete one: {self.latest}"
            ) from error


@contextlib.contextmanager
def closing(checkpoints: Checkpoints):
    """Closes checkpoints on exit; a failed last save raises, or is logged if another error ended the run."""
    try:
        yield
    except BaseException as error:
        try:
            checkpoints.close()
        except CheckpointError as failed:
            if isinstance(error, Stopped):
                raise
            log.error("%s", failed)
        raise
    checkpoints.close()


def partial_load():
    """Orbax context that reads a part of a checkpoint, each host by itself: one that fails does not block the others.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _realign() -> None:
    """Aligns Orbax's operation count across hosts: it names barriers by this count, and a failed operation may skip
    one.
    """
    count = OperationIdGenerator
    highest = max(agreement.gather(int(count.get_current_operation_id())))
    while int(count.get_current_operation_id()) < highest:
        count.next_operation_id()


def _by_process(failure: Exception | None) -> list[str]:
    """Collects the failures of all hosts, one text per failed host; empty if none failed."""
    texts = agreement.gather(None if failure is None else f"{type(failure).__name__}: {first_line(failure)}")
    is_single = len(texts) == 1
    named = texts if is_single else [text and f"process {index}: {text}" for index, text in enumerate(texts)]
    return [text for text in named if text is not None]


def first_line(error: Exception) -> str:
    """First line of an error's message: storage libraries put whole reports into theirs."""
    return (str(error).splitlines() or [""])[0][:300]


def _named(state) -> dict:
    """Converts a state to nested dicts with text keys, which can be read without the classes that made it."""
    return {
        "step": state.step,
        "params": state.params,
        "extra": state.extra,
        "ema": state.ema or {},
        "counters": state.counters,
        "opt_state": {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)},
    }


def _like(abstract, named: dict):
    """Rebuilds a state from its named parts; a missing optimiser state becomes None."""
    opt_state = None
    if "opt_state" in named:
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, _: named["opt_state"][path_name(path)], abstract.opt_state
        )
    return abstract.replace(**{**named, "ema": named.get("ema") or None, "opt_state": opt_state})
