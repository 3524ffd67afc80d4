"""Record of a run: its checkpoints, metrics, evaluations and hooks, which belong to one run directory."""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

from train_jax import adapters, agreement, lora, mirrors, profiling, resume
from train_jax.checkpoint import Checkpoints, closing
from train_jax.data import stream as stream_lib
from train_jax.errors import UserError
from train_jax.evaluation.evaluators import evaluation_params
from train_jax.metrics import Writer
from train_jax.paths import AnyPath
from train_jax.prepare import Prepared, as_json, describe
from train_jax.step import NOTICE, TrainState

log = logging.getLogger(__name__)

_merge = jax.jit(lora.merge)
FAILURE = "failure.json"  # written by `train_jax.sweep`: the error that ended the run


class Record:
    """Record of one run: reads its newest checkpoint, then writes what updates and evaluations yield.

    Args:
      prepared: the prepared run.
      workdir: run directory.
      stack: closes checkpoints and files on exit.
      peak_flops: peak FLOP/s of all devices, for MFU; None if unknown.
      defer_errors: context manager that defers errors of one host until all hosts exchange messages.

    `restore` must be called first. All hosts must make the same calls.

    Attributes:
      checkpoints: checkpoint manager of the run.
      start: step from which the run starts or resumes.
    """

    def __init__(
        self,
        prepared: Prepared,
        workdir: AnyPath,
        stack: contextlib.ExitStack,
        peak_flops: float | None,
        *,
        defer_errors: Callable = contextlib.nullcontext,
    ):
        self._prepared, self._config, self._workdir = prepared, prepared.config, workdir
        self._stack, self._peak_flops, self._defer_errors = stack, peak_flops, defer_errors
        self._finished = False  # whether the last checkpoint was saved
        self._evaluated = True  # whether the evaluations due at the last step were run
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", **prepared.config.checkpoint, config=json.loads(as_json(prepared.config))
        )
        stack.callback(self._write_adapters)  # on exit, after the checkpoints are complete
        stack.enter_context(closing(self.checkpoints))
        self.start = 0

    def restore(
        self,
        position,
        *,
        reset_optimizer: bool = False,
        create: Callable[[], TrainState] | None = None,
        shows_progress: bool = True,
    ) -> tuple[TrainState, int]:
        """Restores the newest readable checkpoint and opens the files of the run. Returns `(state, step)`.

        Args:
          position: data iterator of this host; its `set_state` is called with the saved position.
          create: function that creates the initial state if there is no checkpoint; None: that of the prepared run.
          shows_progress: whether to print progress.
        """
        prepared, config, is_first = self._prepared, self._config, jax.process_index() == 0
        # State and data position come from the same checkpoint, the newest readable one.
        restored = self.checkpoints.restore(prepared.state.abstract, position, reset_optimizer=reset_optimizer)
        state, self.start = ((create or prepared.state.create)(), 0) if restored is None else restored
        if self.start:
            state = resume.complete_state(state, prepared.state.abstract, prepared.state.optimizer.tx.init)
            log.info("resumed from step %d", self.start)
        if is_first:
            describe(prepared.config, prepared.task.artifacts, self._workdir)
            (self._workdir / FAILURE).unlink(missing_ok=True)  # the run goes on
        self._writer = Writer(
            self._workdir,
            total_steps=config.steps,
            active=is_first,
            start_step=self.start,
            shows_progress=shows_progress,
            mirrors=mirrors.start(config.mirrors, self._workdir, json.loads(as_json(config))) if is_first else (),
        )
        self._stack.enter_context(contextlib.closing(self._writer))
        flops = prepared.task.flops
        batch_size = config.data.batch_size
        self._throughput = profiling.ThroughputMeter(
            batch_size, None if flops is None else flops * batch_size, self._peak_flops, self.start
        )
        self._broken_before = int(state.counters["broken"])
        self._hooks = [hook(prepared, self._writer) for hook in prepared.hooks]
        return state, self.start

    def lacks_results(self, step: int) -> bool:
        """Returns whether evaluations that were due at the restored step are missing in the metrics file."""
        due = self._prepared.evaluations.due(step)
        missing = not self.checkpoints.evaluated
        return missing and not agreement.broadcast_from_first(self._writer.has_results(step, due))

    def update(self, step: int, state: TrainState) -> None:
        """Calls the hooks after the dispatch of an update."""
        self._evaluated = not self._prepared.evaluations.due(step)  # for a save after an error or a signal
        for hook in self._hooks:
            hook.on_update(step, state)

    def check(self, step: int, metrics: Mapping) -> None:
        """Checks the metrics of a finished update.

        Raises FloatingPointError after too many skipped updates, DataError after too many broken samples.
        """
        self._check_streak(metrics, step)
        examples = (step - self.start) * self._config.data.batch_size
        broken = int(metrics["broken"]) - self._broken_before
        stream_lib.check_broken(broken, examples, self._config.data.max_broken)

    def log(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Writes metrics and throughput, and logs the warnings of the task."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items() if name != NOTICE}
        with self._defer_errors():
            self._writer.write(step, metrics | self._throughput.read(step))
            self._check_streak(metrics, step)
            warnings = self._prepared.task.warnings
            for sentence in warnings(metrics, step) if warnings else ():
                log.warning("step %d: %s", step, sentence)
            for hook in self._hooks:
                hook.on_log(step, state, metrics)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Runs the evaluators that are due. Raises Interrupted if a host receives a stop signal."""
        names = self._prepared.evaluations.due(step)
        self._evaluated = not names
        if not names:
            return
        with self.paused():
            results, images = self._prepared.evaluations.run(names, self._merged_params(state), state.extra)
            agreement.barrier()
        self._evaluated = True
        with self._defer_errors():
            self._writer.write(step, results)
            self._writer.write_images(step, images)
            for hook in self._hooks:
                hook.on_evaluation(step, results, images)

    def _merged_params(self, state: TrainState):
        """Returns the weights for inference, with adapters added to their kernels."""
        params = evaluation_params(state)
        return _merge(params) if self._config.optim.lora else params

    def save(self, step: int, state: TrainState, position) -> None:
        """Starts an asynchronous save of the state, and of whether the evaluations due were run."""
        with self.paused():
            self.checkpoints.save(step, state, position, evaluated=self._evaluated)
        self._finished = step == self._config.steps

    def _write_adapters(self) -> None:
        """Writes the file of adapters of a run that has finished, unless the weights that it started from are gone."""
        if not (self._finished and self._config.optim.lora):
            return
        try:
            adapters.write(self._workdir)
        except (UserError, OSError) as error:  # the checkpoint is complete without it
            log.error("%s could not be written: %s", self._workdir / adapters.FILE, error)

    def paused(self) -> contextlib.AbstractContextManager:
        """Returns a context whose time does not count as training, such as an evaluation."""
        return self._throughput.paused()

    def _check_streak(self, metrics: Mapping, step: int) -> None:
        """Raises FloatingPointError if too many consecutive updates were skipped."""
        if int(metrics["streak"]) < self._config.optim.max_skipped:
            return
        norms = [float(norm) for name, norm in metrics.items() if name.startswith("grad_norm")]
        latest = self.checkpoints.latest
        saved = "there is no checkpoint yet" if latest is None else f"the checkpoint of step {latest} is intact"
        raise FloatingPointError(
            f"the last {int(metrics['streak'])} updates up to step {step} had a non-finite loss or gradient and were "
            f"skipped (loss {float(metrics['loss'])}, grad_norm {norms}); {saved}. "
            "Lower config.optim.lr, lengthen config.optim.warmup_steps, or set config.compute.dtype to float32"
        )
