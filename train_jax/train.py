"""Training loop: prepare, compile, restore, train.

A run directory contains `config.json`, `environment.json`, the artifacts of the task (`tokenizer.json`, …) with their hashes
in `artifacts.json`, `checkpoints/<step>/`, `metrics.jsonl`, TensorBoard events, `samples/*.png`, and of a finished run with
adapters `adapters.safetensors`.
"""

import contextlib
import logging
import os

import jax
import numpy as np
from ml_collections import ConfigDict

from train_jax import agreement, feed, memory, paths, profiling, program_cache
from train_jax.environment import record_start
from train_jax.errors import Interrupted, Stopped
from train_jax.lockstep import AHEAD
from train_jax.metrics import History, read
from train_jax.ownership import Ownership
from train_jax.paths import AnyPath
from train_jax.preemption import StopRequest
from train_jax.prepare import Prepared, prepare
from train_jax.record import Record
from train_jax.step import NOTICE

log = logging.getLogger(__name__)

_PROFILED_STEPS = (10, 15)  # first and last profiled update, after warm-up


def run(
    config: ConfigDict, workdir: str | os.PathLike, *, profile: bool = False, reset_optimizer: bool = False
) -> History:
    """Trains the model of `config` in `workdir`. Returns the history of metrics.

    Resumes from the newest readable checkpoint of `workdir`, if any. A resumed run has the same metrics as an
    uninterrupted run.

    Args:
      config: a ConfigDict; see `train_jax.config.TrainOptions` for the options and `configs/` for examples.
      workdir: run directory; created if missing.
      profile: write a profiler trace of a few updates to `workdir/profile` (TensorBoard, Perfetto).
      reset_optimizer: resume with a new optimiser state, which allows other options `config.optim` than those of the
        checkpoint. Weights, data position and schedules continue.

    Raises:
      ConfigError: an option is unknown, of the wrong type or out of range; the batch does not split evenly over the mesh;
        the run directory holds another experiment; the checkpoint is of another optimiser, without `reset_optimizer`. All
        but the last are raised before compilation.
      LoadError: the tokenizer or another artifact in the run directory has changed.
      train_jax.data.sources.DataError: there is no data, or too many samples are unreadable.
      Stopped: a process of the run received SIGTERM or SIGINT. The state is saved, and running again resumes. A second
        signal ends the process at once.
      train_jax.agreement.PeerError: another host failed. The state is saved.
      FloatingPointError: `config.optim.max_skipped` consecutive updates had non-finite gradients.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir = paths.run_directory(workdir)
            stop = StopRequest()
            program_cache.enable(jax.devices()[0].platform)
            prepared = prepare(config, workdir, asked_to_stop=lambda: stop.signal_number)
            peak_flops = profiling.peak_flops(jax.devices())  # must run outside of the mesh context
            with jax.set_mesh(prepared.mesh):
                agreement.barrier()  # no host may enter the collective part before all are prepared
                ownership = stack.enter_context(contextlib.closing(Ownership(workdir)))
                step = prepared.step.lower().compile()
                report(prepared, step)
                stack.enter_context(stop)
                loop = Loop(prepared, step, workdir, stop, ownership, stack, peak_flops, reset_optimizer, profile)
                loop.run()
        except Exception as error:
            agreement.share_error(error)
            raise
    return read(workdir)  # after the writer has written everything


class Loop:
    """Training loop of one run, starting from its newest checkpoint.

    Hosts take joint actions at the same updates: a host that failed or received a stop signal sets the notice of its next
    batch (`train_jax.lockstep`), upon which all hosts exchange messages.
    """

    def __init__(
        self,
        prepared: Prepared,
        compiled: jax.stages.Compiled,
        workdir: AnyPath,
        stop: StopRequest,
        ownership: Ownership,
        stack: contextlib.ExitStack,
        peak_flops: float | None,
        reset_optimizer: bool = False,
        profile: bool = False,
    ):
        self.prepared, self.config, self.workdir = prepared, prepared.config, workdir
        self._compiled, self._stop, self._ownership, self._profile = compiled, stop, ownership, profile
        self._lockstep = prepared.lockstep
        self._record = Record(prepared, workdir, stack, peak_flops, defer_errors=self._lockstep.defer_errors)
        self.state, self.start = self._record.restore(prepared.stream, reset_optimizer=reset_optimizer)
        if jax.process_index() == 0:
            record_start(workdir, prepared, compiled, self.start)
        self.step = self.start
        self._batches = feed.Prefetch(prepared.stream, prepared.to_device, depth=AHEAD + 1)
        self._tracing = stack.enter_context(contextlib.ExitStack())

    def run(self) -> None:
        """Runs updates until `config.steps`, with scheduled logs, evaluations and checkpoints."""
        record = self._record
        try:
            self._batches.fill()
            self._meet()
            # Run evaluations that were missing when the checkpoint was saved, unless the metrics file contains them.
            if record.lacks_results(self.step):
                self._evaluate()
            while self.step < self.config.steps:
                self._check_finished_update()
                metrics = self._update()
                is_last = self.step == self.config.steps
                if self.step % self.config.log_every == 0 or is_last:
                    record.log(self.step, self.state, metrics)
                self._evaluate()
                # The iterator's state belongs to the last used batch: do not read another batch before this save.
                if is_last or record.checkpoints.due(self.step):
                    record.save(self.step, self.state, self._batches)
            if self._lockstep.error is not None:
                raise self._lockstep.error
            agreement.barrier()
        except Stopped:
            raise
        except Exception as error:
            # Save the progress, such as after unreadable data or a failed evaluation.
            agreement.share_error(error)
            is_lost = any(agreement.gather(self._ownership.error is not None))  # another run has taken over the directory
            if self.step and not is_lost:
                record.save(self.step, self.state, self._batches)
            raise

    def _update(self) -> dict[str, jax.Array]:
        """Dispatches the next update. Returns its metrics as device arrays."""
        if self._profile and self.step == self.start + _PROFILED_STEPS[0] - 1:
            self._tracing.enter_context(profiling.trace(self.workdir / "profile"))
        batch = next(self._batches)  # may set an error, which the notice must include
        notice = self._lockstep.make_notice(*self._errors(), self._stop.signal_number)
        self.state, metrics = self._compiled(self.state, batch | notice)
        self._lockstep.record_update(metrics)
        self.step += 1
        if self._profile and self.step == self.start + _PROFILED_STEPS[1]:
            jax.block_until_ready(self.state)
            self._tracing.close()
        self._record.update(self.step, self.state)
        return metrics

    def _check_finished_update(self) -> None:
        """Checks the metrics of the oldest update in flight: skipped updates, broken samples, notices of hosts."""
        metrics = self._lockstep.wait_for_oldest()
        if metrics is None:
            return
        with self._lockstep.defer_errors():
            self._record.check(self.step - AHEAD + 1, metrics)
        if int(metrics[NOTICE]) and (signal_number := self._meet()):
            self._record.save(self.step, self.state, self._batches)
            raise Stopped(self.step, signal_number)

    def _errors(self) -> list[Exception]:
        """Returns the deferred errors of this host."""
        errors = (self._lockstep.error, self._batches.error, self._ownership.error)
        return [error for error in errors if error is not None]

    def _meet(self) -> int:
        """Exchanges stop signals with the other hosts. Returns the largest signal number, 0 if there is none.

        Raises the first deferred error of this host.
        """
        errors = self._errors()
        if errors and not self._stop.signal_number:  # Ctrl-C also ends the data workers, which is not an error
            raise errors[0]
        return max(agreement.gather(self._stop.signal_number))

    def _evaluate(self) -> None:
        """Runs the evaluators that are due."""
        try:
            self._record.evaluate(self.step, self.state)
        except Interrupted as interrupted:
            self._record.save(self.step, self.state, self._batches)
            raise Stopped(self.step, interrupted.signal_number) from interrupted


def report(prepared: Prepared, compiled: jax.stages.Compiled) -> None:
    """Logs the sizes of model, mesh, data and compiled step. Raises ConfigError if the step exceeds the free memory."""
    config, mesh = prepared.config, prepared.mesh
    for player, params in prepared.state.abstract.params.items():
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        log.info("%s: %s parameters", player, f"{count:,}")
    log.info("mesh %s over %d %s device(s)", dict(mesh.shape), mesh.size, mesh.devices.flat[0].device_kind)
    epochs = config.steps * config.data.batch_size / prepared.records
    log.info("%s examples; %.2f epochs", f"{prepared.records:,}", epochs)
    plan = profiling.memory_plan(compiled)
    log.info("memory of the compiled step per device:\n%s", plan)
    remedy = "lower config.data.batch_size, set config.compute.remat, or spread the run over more devices (config.mesh.fsdp)"
    memory.require(plan.needed, mesh.local_devices[0], "the compiled step takes", remedy)
