"""Checkpoints of training state and data position: saved asynchronously by Orbax, restored onto any mesh.

A checkpoint is a folder `<step>/`. The folder gets this name only after the save is complete, so a killed process leaves
earlier checkpoints intact. Damaged checkpoints are logged and skipped. All hosts agree on which checkpoint to read,
whether reading succeeded, which checkpoints to rename, and whether a save succeeded.
"""

import contextlib
import logging
import os

import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator  # Orbax's tests align it in the same way

from train_jax import agreement, optim, paths, resume
from train_jax.errors import ConfigError, Stopped, UserError
from train_jax.sharding import path_name

log = logging.getLogger(__name__)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filters out Orbax's error logs: one traceback per thread of a failed save.

    `Checkpoints` logs the failure in one line instead.
    """
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_relevant)


class CheckpointError(UserError):
    """Failure to read any checkpoint of a run, or to write its last checkpoint."""


class Checkpoints:
    """Checkpoint manager of one run.

    Args:
      directory: checkpoint directory; created if missing. Unfinished checkpoints of a killed process are removed.
      every: number of updates between checkpoints.
      keep_last: number of newest checkpoints to keep.
      keep_every: also keeps checkpoints whose step is a multiple of this; 0: none.
      config: the config of the run, a JSON-serialisable dict that is saved with each checkpoint.

    All hosts must make the same calls.

    Attributes:
      evaluated: whether the evaluations due at the restored step were run before it was saved.
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
        """Steps of the complete checkpoints, in ascending order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is no checkpoint."""
        return max(self.steps, default=None)

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is due after update `step`."""
        return step % self._every == 0

    def save(self, step: int, state, position, *, evaluated: bool = True) -> None:
        """Starts an asynchronous save of the state. The state may be donated as soon as this method returns.

        Args:
          position: data iterator of this host, an object with `get_state()`.
          evaluated: whether the evaluations due at this step were run.

        A failed save (such as a full disk) is logged and training continues; earlier checkpoints stay intact.
        """
        self.wait()
        if agreement.broadcast_from_first(step in self.steps):
            return
        # All hosts read rows of the same global batches, so the data position is the same on every host.
        metadata = {"position": position.get_state(), "evaluated": evaluated, "config": self._config}
        failure = None
        try:
            content = _to_named_tree(state)
            if optim.has_average(state.opt_state):
                # Inference cannot read optimiser states, so it needs a separate copy.
                content["average"] = optim.evaluation_params(state.opt_state, state.params)
            self._saving = (step, self._checkpointer.save_async(step, content, force=True, custom_metadata=metadata))
        except Exception as error:
            failure = error
        self._agree_on_failure(step, failure)

    def wait(self) -> None:
        """Waits for the save in progress, if any."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        failure = None
        try:
            response.result()
        except Exception as error:
            failure = error
        if not self._agree_on_failure(step, failure) and self._failure is not None:
            # A thread of the failed save may have written more files after `_report` removed the unfinished folder.
            self._remove_unfinished()
            self._failure = None

    def _agree_on_failure(self, step: int, failure: Exception | None) -> bool:
        """Returns whether the save failed on any host, and reports such a failure on all hosts."""
        failures = _gather_failures(failure)
        if failures:
            self._saving = None
            self._report(step, failure or agreement.PeerError("; ".join(failures)))
        return bool(failures)

    def _report(self, step: int, error: Exception) -> None:
        """Logs a failed save, removes its files and opens a new checkpointer."""
        self._failure = (step, error)
        log.error(
            "checkpoint %d could not be saved (%s: %s); training goes on, earlier checkpoints are untouched",
            step,
            type(error).__name__,
            first_line(error),
        )
        # Remove the unfinished folder and reset Orbax, so that the next save starts clean.
        try:
            self._checkpointer.close()  # waits for the threads of the save
        except Exception as again:
            log.debug("closing after the failed save: %s", first_line(again))
        self._remove_unfinished()
        _realign()
        self._checkpointer = self._open()

    def _remove_unfinished(self) -> None:
        """Removes the folders of unfinished saves."""
        if jax.process_index() == 0:
            for remains in self._directory.glob("*.orbax-checkpoint-tmp*"):
                paths.remove(remains)

    def restore(self, abstract_state, position, *, reset_optimizer: bool = False) -> tuple[object, int] | None:
        """Restores the newest readable checkpoint. Returns `(state, step)`, or None if there is no checkpoint.

        Args:
          abstract_state: shapes, dtypes and shardings of the state. The checkpoint may come from any mesh and any number
            of hosts.
          position: data iterator of this host; its `set_state` is called with the saved position.
          reset_optimizer: do not restore the optimiser state.

        `resume.complete_state` then adds the optimiser state, and weight averages that the checkpoint lacks.

        Raises CheckpointError if there are checkpoints and none can be read, ConfigError for a checkpoint of another
        optimiser or another model.
        """
        self.wait()
        failures = []
        steps = agreement.broadcast_from_first(self.steps)
        for step in reversed(steps):
            failure, restored, metadata = None, None, None
            try:
                restored, metadata = self._load(step, abstract_state, reset_optimizer)
            except ConfigError:
                raise  # raised on every host, since all read the same checkpoint
            except Exception as error:
                failure = error
            errors = _gather_failures(failure)
            if not errors:
                position.set_state(metadata["position"])
                self.evaluated = metadata["evaluated"]
                self._set_aside([damaged for damaged in steps if damaged > step])
                return restored, step
            failures.append(f"{self._directory / str(step)}: {'; '.join(errors)}")
            log.error("checkpoint %s cannot be read, trying the one before it", failures[-1])
        if failures:
            _realign()  # the process may continue with another run
            raise CheckpointError("no checkpoint can be read:\n  " + "\n  ".join(failures))
        return None

    def _load(self, step: int, abstract_state, reset_optimizer: bool):
        """Loads the state of a checkpoint and the metadata saved with it."""
        saved = self._checkpointer.metadata(step)
        metadata = saved.custom_metadata
        parts = resume.select_parts(
            saved.metadata, _to_named_tree(abstract_state), metadata["config"], self._config, reset_optimizer=reset_optimizer
        )
        with partial_load():
            return _from_named_tree(abstract_state, self._checkpointer.load(step, parts)), metadata

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints to `damaged-<step>`, so that their steps can be saved again."""
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
        """Waits for the save in progress and closes the checkpointer.

        Raises CheckpointError if the last save of the run failed.
        """
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
    """Closes checkpoints on exit. A failed last save raises, or is logged if another error ended the run."""
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
    """Returns an Orbax context for partial loading in which each host reads independently.

    A host that fails does not block the other hosts.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _realign() -> None:
    """Sets Orbax's operation counter to its maximum over all hosts.

    Orbax names barriers by this counter, and a failed operation may leave it behind on some hosts.
    """
    count = OperationIdGenerator
    highest = max(agreement.gather(int(count.get_current_operation_id())))
    while int(count.get_current_operation_id()) < highest:
        count.next_operation_id()


def _gather_failures(failure: Exception | None) -> list[str]:
    """Collects the failures of all hosts: one message per failed host, empty if none failed."""
    texts = agreement.gather(None if failure is None else f"{type(failure).__name__}: {first_line(failure)}")
    is_single = len(texts) == 1
    named = texts if is_single else [text and f"process {index}: {text}" for index, text in enumerate(texts)]
    return [text for text in named if text is not None]


def first_line(error: Exception) -> str:
    """Returns the first line of an error message; messages of storage libraries can be very long."""
    return (str(error).splitlines() or [""])[0][:300]


def _to_named_tree(state) -> dict:
    """Converts a state to nested dicts with string keys, which can be read without the original classes."""
    return {
        "step": state.step,
        "params": state.params,
        "extra": state.extra,
        "ema": state.ema or {},
        "counters": state.counters,
        "opt_state": {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)},
    }


def _from_named_tree(abstract, named: dict):
    """Rebuilds a state from nested dicts; a missing optimiser state becomes None."""
    opt_state = None
    if "opt_state" in named:
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, _: named["opt_state"][path_name(path)], abstract.opt_state
        )
    return abstract.replace(**{**named, "ema": named.get("ema") or None, "opt_state": opt_state})
