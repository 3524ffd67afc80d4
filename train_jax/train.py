"""The training loop, top to bottom: config -> mesh -> task and data -> state -> step -> restore -> loop.

The run directory describes itself: `config.json`, the task's artifacts (`tokenizer.json`, …) with `artifacts.json`
(their hashes), `checkpoints/<step>/`, `metrics.jsonl`, TensorBoard events, `samples/*.png`.
"""

import contextlib
import hashlib
import json
import logging
import os
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import optim, paths, profiling, sharding
from train_jax import task as task_lib
from train_jax.checkpoint import Checkpoints
from train_jax.data import pipeline, sources
from train_jax.errors import ConfigError
from train_jax.evaluate import Evaluations
from train_jax.metrics import History, Writer, read
from train_jax.paths import AnyPath
from train_jax.step import BROKEN, TrainState, init_state, make_train_step
from train_jax.task import Task

log = logging.getLogger(__name__)

_PROFILED_STEPS = (10, 15)  # after compilation and warm-up
_IDENTITY = ("task", "model", "tokenizer", "preprocess", "vqgan")  # what a run directory's weights depend on


def run(config: ConfigDict, workdir: str | os.PathLike, *, profile: bool = False) -> History:
    """Trains what `config` says, in `workdir`, and returns the history of metrics.

    Resumes from the newest readable checkpoint of `workdir`, if there is one, and continues exactly: metrics equal
    those of a run that was never interrupted. On SIGTERM or a preemption notice it saves and returns early.

    Args:
      config: a ConfigDict; see `train_jax.config.defaults` for the options and `configs/` for examples.
      workdir: the run directory; made if missing.
      profile: write a trace of a few updates to `workdir/profile` (TensorBoard, Perfetto).

    Raises:
      ConfigError: an option that is unknown, of the wrong type or out of range; a batch that the mesh does not divide;
        a run directory that holds another experiment. Nothing is compiled before these are known.
      train_jax.data.sources.DataError: no data, or too many unreadable samples.
      FloatingPointError: `config.optim.max_skipped` updates in a row had non-finite gradients.
    """
    # Config and mesh: everything that can be wrong is found out here, before memory or a compiler is touched.
    config = config_lib.resolve(config)
    workdir = paths.run_directory(workdir)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config.data.batch_size, config.accumulate)
    _check_same_experiment(config, workdir)
    peak = profiling.peak_flops(jax.devices())
    first = jax.process_index() == 0

    # Task and data.
    task = task_lib.module(config).make(config, workdir)
    source = sources.open_source(
        config.data.source,
        config.data.split,
        data_dir=config.data.data_dir or None,
        templates=tuple(config.data.templates) or None,
    )
    records = source if task.records is None else task.records(source)
    iterator = pipeline.train_iterator(
        records,
        task.example,
        batch_size=config.data.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    if first:
        _describe(config, task, workdir)

    with jax.set_mesh(mesh):
        # State: abstract shapes first, then the step is compiled, then memory is taken.
        batch_shapes = _global_shapes(iterator, config.data.batch_size)
        schedules = {}

        def make_tx(params, axes):
            tx, found = optim.make(config.optim, params, config.steps, axes)
            schedules.update(found)
            return tx

        ema_players = ()
        if config.ema.decay:
            ema_players = tuple(config.ema.players) or tuple(_players(task, config.seed, batch_shapes))
        create_state, abstract_state, tx = init_state(
            task, make_tx, mesh, _without(batch_shapes), seed=config.seed, ema_players=ema_players
        )
        step_fn = make_train_step(
            task,
            tx,
            mesh,
            abstract_state,
            seed=config.seed,
            schedules=schedules,
            accumulate=config.accumulate,
            ema_decay=config.ema.decay,
        )
        step_fn = step_fn.lower(abstract_state, batch_shapes).compile()
        _report(config, mesh, abstract_state, step_fn, len(source))

        # Restore: the newest checkpoint that can be read brings state and data position back together.
        checkpoints = Checkpoints(workdir / "checkpoints", **config.checkpoint, config=json.loads(_as_json(config)))
        with contextlib.closing(checkpoints):
            restored = checkpoints.restore(abstract_state, iterator)
            state, start = (create_state(), 0) if restored is None else restored
            if start:
                log.info("resumed from step %d", start)

            # Loop.
            evaluations = Evaluations(config, task, mesh)
            writer = Writer(workdir, total_steps=config.steps, active=first, start_step=start)
            flops = None if task.flops is None else task.flops * config.data.batch_size
            with contextlib.closing(writer), contextlib.ExitStack() as tracing:
                batches = pipeline.prefetch(
                    iterator,
                    lambda batch: pipeline.to_device(batch, sharding.batch_sharding(mesh)),
                    max_broken=config.data.max_broken,
                )
                clock = _Clock(config.data.batch_size, flops, peak, start)
                for step in range(start + 1, config.steps + 1):
                    if profile and step == start + _PROFILED_STEPS[0]:
                        tracing.enter_context(profiling.trace(workdir / "profile"))
                    with _saving_on_error(checkpoints, step - 1, state, batches):
                        batch = next(batches)
                    state, metrics = step_fn(state, batch)
                    if profile and step == start + _PROFILED_STEPS[1]:
                        jax.block_until_ready(state)
                        tracing.close()

                    last = step == config.steps
                    if step % config.log_every == 0 or last:
                        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
                        writer.write(step, metrics | clock.read(step))
                        _check_streak(metrics, config, step, checkpoints.latest)
                        for sentence in task.warnings(metrics, step) if task.warnings else ():
                            log.warning("step %d: %s", step, sentence)
                    names = evaluations.due(step)
                    if names:
                        with clock.paused(), _saving_on_error(checkpoints, step, state, batches):
                            found, images = evaluations.run(names, state)
                        writer.write(step, found)
                        writer.images(step, images)

                    # The iterator's state is that of the batch just used: nothing may be drawn before this save.
                    if last or checkpoints.due(step):
                        with clock.paused():
                            checkpoints.save(step, state, batches)
                    if checkpoints.stopping:
                        log.warning("stopping after step %d as asked; the same command goes on from here", step)
                        break
    return read(workdir)


class _Clock:
    """Speed since the last reading, evaluations and checkpoints left out."""

    def __init__(self, batch_size: int, flops: float | None, peak: float | None, step: int):
        self._batch_size = batch_size
        self._flops, self._peak = flops, peak
        self._step = step
        self._since = time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        seconds = (now - self._since) / (step - self._step)
        self._since, self._step = now, step
        speed = {"steps_per_second": 1 / seconds, "examples_per_second": self._batch_size / seconds}
        if self._flops is not None and self._peak is not None:
            speed["mfu"] = profiling.mfu(self._flops, seconds, self._peak)
        return speed

    @contextlib.contextmanager
    def paused(self):
        begun = time.perf_counter()
        yield
        self._since += time.perf_counter() - begun


@contextlib.contextmanager
def _saving_on_error(checkpoints: Checkpoints, step: int, state: TrainState, batches: pipeline.prefetch):
    """What training has done so far outlives unreadable data and a failed evaluation."""
    try:
        yield
    except Exception:
        if step:
            checkpoints.save(step, state, batches)
        raise


def _without(batch: dict) -> dict:
    return {name: x for name, x in batch.items() if name != BROKEN}


def _players(task: Task, seed: int, batch_shapes) -> list[str]:
    return list(jax.eval_shape(task.init, jax.random.key(seed), _without(batch_shapes))[0])


def _global_shapes(iterator, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch. The batch that is drawn to learn them is put back."""
    before = iterator.get_state()
    batch = next(iterator)
    iterator.set_state(before)
    return {name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for name, x in batch.items()}


def _check_same_experiment(config: ConfigDict, workdir: AnyPath) -> None:
    path = workdir / "config.json"
    if not path.exists():
        return
    before, now = _flat(json.loads(path.read_text())), _flat(json.loads(_as_json(config)))
    different = {
        key: (before.get(key), now.get(key)) for key in sorted({*before, *now}) if before.get(key) != now.get(key)
    }
    other = [key for key in different if key.split(".")[0] in _IDENTITY]
    if other:
        what = ", ".join(f"config.{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in other)
        raise ConfigError(f"{workdir} holds another run: {what}. Choose another --workdir, or remove this one")
    for key, (was, is_now) in different.items():
        log.warning("config.%s differs from that of the run in %s: was %r, is %r", key, workdir, was, is_now)


def _flat(config: dict, prefix: str = "") -> dict:
    """Options by dotted name."""
    found = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _as_json(config: ConfigDict) -> str:
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def _describe(config: ConfigDict, task: Task, workdir: AnyPath) -> None:
    """Writes what a reader of the run directory needs beside the weights."""
    workdir.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, content in {"config.json": _as_json(config), **task.artifacts}.items():
        content = content if isinstance(content, bytes) else content.encode()
        # A run that is stopped here must still find the old file, whole.
        unfinished = workdir / f"{name}.unfinished"
        unfinished.write_bytes(content)
        unfinished.replace(workdir / name)
        if name != "config.json":
            hashes[name] = hashlib.sha256(content).hexdigest()
    (workdir / "artifacts.json").write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n")


def _report(config: ConfigDict, mesh, abstract_state, compiled, examples: int) -> None:
    for player, params in abstract_state.params.items():
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        log.info("%s: %s parameters", player, f"{count:,}")
    log.info("mesh %s over %d %s device(s)", dict(mesh.shape), mesh.size, mesh.devices.flat[0].device_kind)
    log.info("%s examples; %.2f epochs", f"{examples:,}", config.steps * config.data.batch_size / examples)
    log.info("memory of the compiled step, per device:\n%s", profiling.memory_plan(compiled))


def _check_streak(metrics: dict[str, float], config: ConfigDict, step: int, checkpoint: int | None) -> None:
    if metrics["streak"] >= config.optim.max_skipped:
        saved = "there is no checkpoint yet" if checkpoint is None else f"the checkpoint of step {checkpoint} is intact"
        raise FloatingPointError(
            f"the last {metrics['streak']:.0f} updates up to step {step} had a non-finite loss or gradient and were skipped "
            f"(loss {metrics['loss']}, grad_norm {[v for k, v in metrics.items() if k.startswith('grad_norm')]}); {saved}. "
            "Lower config.optim.lr, lengthen config.optim.warmup_steps, or set config.model.dtype to float32"
        )
