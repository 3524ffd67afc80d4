"""The training loop, top to bottom: config -> mesh -> task and data -> state -> step -> restore -> loop.

The run directory describes itself: `config.json`, the task's artifacts (`tokenizer.json`, …) with `artifacts.json`
(their hashes), `checkpoints/<step>/`, `metrics.jsonl`, TensorBoard events, `samples/*.png`.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from train_jax import agreement, memory, optim, paths, profiling, resume, run_directory, sharding
from train_jax import config as config_lib
from train_jax import task as task_lib
from train_jax.checkpoint import CheckpointError, Checkpoints
from train_jax.data import pipeline, sources
from train_jax.errors import ConfigError, Interrupted, LoadError, Stopped
from train_jax.evaluate import Evaluations
from train_jax.lockstep import AHEAD, Lockstep
from train_jax.metrics import History, Writer, read
from train_jax.ownership import Ownership
from train_jax.paths import AnyPath
from train_jax.preemption import StopRequest
from train_jax.step import BROKEN, NOTICE, check_averaged, init_state, make_train_step
from train_jax.task import Task

log = logging.getLogger(__name__)

_PROFILED_STEPS = (10, 15)  # after compilation and warm-up
_IDENTITY = ("task", "model", "tokenizer", "preprocess", "vqgan")  # what a run directory's weights depend on


def run(
    config: ConfigDict, workdir: str | os.PathLike, *, profile: bool = False, reset_optimizer: bool = False
) -> History:
    """Trains what `config` says, in `workdir`, and returns the history of metrics.

    Resumes from the newest readable checkpoint of `workdir`, if there is one, and continues exactly: metrics equal
    those of a run that was never interrupted.

    Args:
      config: a ConfigDict; see `train_jax.config.defaults` for the options and `configs/` for examples.
      workdir: the run directory; made if missing.
      profile: write a trace of a few updates to `workdir/profile` (TensorBoard, Perfetto).
      reset_optimizer: a resumed run keeps its weights and its place in data and schedules, and begins with fresh moments:
        for other options of `config.optim` than its checkpoint's.

    Raises:
      ConfigError: an option that is unknown, of the wrong type or out of range; a batch that the mesh does not divide;
        a run directory that holds another experiment. Nothing is compiled before these are known.
        A checkpoint of another optimiser, without `reset_optimizer`.
      LoadError: the tokenizer or another artifact in the run directory is not the one that the run was trained with.
      train_jax.data.sources.DataError: no data, or too many unreadable samples.
      Stopped: a process of the run was asked to stop (SIGTERM or SIGINT, the first time); what was trained is saved, and
        running it again goes on. A second signal ends the process at once.
      train_jax.agreement.PeerError: another host failed; what was trained is saved.
      FloatingPointError: `config.optim.max_skipped` updates in a row had non-finite gradients.
    """
    with contextlib.ExitStack() as held:
        try:
            _run(config, workdir, profile, reset_optimizer, held)
        except Exception as error:
            agreement.share(error)
            raise
    return read(paths.run_directory(workdir))  # all is written once the writer is closed


def _run(
    config: ConfigDict, workdir: str | os.PathLike, profile: bool, reset_optimizer: bool, held: contextlib.ExitStack
) -> None:
    # Config and mesh: everything that can be wrong is found out here, before memory or a compiler is touched.
    config = config_lib.resolve(config)
    workdir = paths.run_directory(workdir)
    agreement.check_connected()
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config.data.batch_size, config.accumulate)
    _check_same_experiment(config, workdir)
    peak = profiling.peak_flops(jax.devices())
    first = jax.process_index() == 0

    # Task and data.
    if (workdir / "artifacts.json").is_file():
        run_directory.check_artifacts(workdir)
    task = task_lib.module(config).make(config, workdir)
    source = sources.open_source(
        config.data.source,
        config.data.split,
        data_dir=config.data.data_dir or None,
        templates=tuple(config.data.templates) or None,
    )
    stop = StopRequest()
    evaluations = Evaluations(config, task, mesh, lambda: stop.signal_number)
    if task.records is not None:
        _check_training(config, task)  # records, such as codes, may take hours
    records = source if task.records is None else task.records(source)
    agreement.check_same(len(records), f"records of {source.name}")
    split = sharding.batch_sharding(mesh)
    iterator = pipeline.train_iterator(
        records,
        task.example,
        batch_size=config.data.batch_size,
        seed=config.seed,
        rows=sharding.host_rows(split, config.data.batch_size),
        workers=config.data.workers,
    )
    batch_shapes = iterator.shapes()

    with jax.set_mesh(mesh):
        # State: abstract shapes first, then the step is compiled, then memory is taken.
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
            freeze=config.optim.freeze,
        )
        lockstep = Lockstep(mesh)
        # Tracing refuses what is left to refuse: nothing has been written yet.
        step_fn = step_fn.lower(abstract_state, batch_shapes | lockstep.notice())
        agreement.gather()  # every host has come so far: what follows is done together
        ownership = held.enter_context(contextlib.closing(Ownership(workdir)))
        step_fn = step_fn.compile()
        _report(config, mesh, abstract_state, step_fn, len(source))

        # Restore: the newest checkpoint that can be read brings state and data position back together.
        held.enter_context(stop)
        checkpoints = Checkpoints(workdir / "checkpoints", **config.checkpoint, config=json.loads(_as_json(config)))
        held.enter_context(_closing(checkpoints))
        restored = checkpoints.restore(abstract_state, iterator, reset_optimizer=reset_optimizer)
        state, start = (create_state(), 0) if restored is None else restored
        if start:
            state = resume.completed(state, abstract_state, tx.init)
            log.info("resumed from step %d", start)
        if first:
            _describe(config, task, workdir)

        # Loop.
        writer = Writer(workdir, total_steps=config.steps, active=first, start_step=start)
        held.enter_context(contextlib.closing(writer))
        tracing = held.enter_context(contextlib.ExitStack())
        batches = pipeline.prefetch(
            iterator, lambda batch: pipeline.to_device(batch, split, config.data.batch_size), depth=AHEAD + 1
        )
        flops = None if task.flops is None else task.flops * config.data.batch_size
        throughput = profiling.ThroughputMeter(config.data.batch_size, flops, peak, start)
        broken_before = int(state.counters["broken"])

        def errors() -> list[Exception]:
            return [error for error in (lockstep.error, batches.error, ownership.error) if error is not None]

        def meet() -> int:
            """The signal that asks a host to stop, on all of them; raises what keeps a host from going on."""
            if errors() and not stop.signal_number:  # Ctrl-C ends the processes that read, too
                raise errors()[0]
            return max(agreement.gather(stop.signal_number))

        evaluated = True  # whether the evaluations whose turn has come were made

        def evaluate() -> None:
            nonlocal evaluated
            names = evaluations.due(step)
            if not names:
                return
            evaluated = False
            try:
                with throughput.paused():
                    results, images = evaluations.run(names, state)
                    agreement.gather()
            except Interrupted as interrupted:
                checkpoints.save(step, state, batches, evaluated=False)
                raise Stopped(step, interrupted.signal_number) from interrupted
            evaluated = True
            with lockstep.carried():
                writer.write(step, results)
                writer.images(step, images)

        step = start
        try:
            batches.fill()
            meet()
            # A checkpoint cannot be told afterwards that its evaluation was made up for: the record tells.
            if not checkpoints.evaluated and not agreement.from_first(writer.tells_of(step, evaluations.due(step))):
                evaluate()
            while step < config.steps:
                finished = lockstep.finished()
                if finished is not None:
                    with lockstep.carried():
                        _check_streak(finished, config, step - AHEAD + 1, checkpoints)
                        examples = (step - AHEAD + 1 - start) * config.data.batch_size
                        pipeline.check_broken(int(finished["broken"]) - broken_before, examples, config.data.max_broken)
                    if int(finished[NOTICE]) and (signal_number := meet()):
                        checkpoints.save(step, state, batches)
                        raise Stopped(step, signal_number)

                if profile and step == start + _PROFILED_STEPS[0] - 1:
                    tracing.enter_context(profiling.trace(workdir / "profile"))
                batch = next(batches) | lockstep.notice(*errors(), stop.signal_number)
                state, metrics = step_fn(state, batch)
                lockstep.started(metrics)
                step += 1
                if profile and step == start + _PROFILED_STEPS[1]:
                    jax.block_until_ready(state)
                    tracing.close()

                last = step == config.steps
                if step % config.log_every == 0 or last:
                    metrics = {name: float(value) for name, value in jax.device_get(metrics).items() if name != NOTICE}
                    with lockstep.carried():
                        writer.write(step, metrics | throughput.read(step))
                        _check_streak(metrics, config, step, checkpoints)
                        for sentence in task.warnings(metrics, step) if task.warnings else ():
                            log.warning("step %d: %s", step, sentence)
                evaluate()
                # The iterator's state is that of the batch just used: nothing may be drawn before this save.
                if last or checkpoints.due(step):
                    with throughput.paused():
                        checkpoints.save(step, state, batches)
            if lockstep.error is not None:
                raise lockstep.error
            agreement.gather()
        except Stopped:
            raise
        except Exception as error:
            # What training has done so far outlives unreadable data and a failed evaluation.
            agreement.share(error)
            lost = any(agreement.gather(ownership.error is not None))  # another run trains there now
            if step and not lost:
                checkpoints.save(step, state, batches, evaluated=evaluated)
            raise


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints):
    """Closes checkpoints; a last save that failed is an error, or is logged beside the error that ended the run."""
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


def _without(batch: dict) -> dict:
    return {name: x for name, x in batch.items() if name != BROKEN}


def _players(task: Task, seed: int, batch_shapes) -> list[str]:
    return list(jax.eval_shape(lambda batch: task.init(jax.random.key(seed), batch), _without(batch_shapes))[0])


def _check_training(config: ConfigDict, task: Task) -> None:
    """ConfigError for an optimiser or averages that cannot be, before a batch has been seen."""
    params, _ = jax.eval_shape(lambda: task.init(jax.random.key(config.seed), {}))
    check_averaged(config.ema.players, params)
    optim.make(config.optim, sharding.unbox(params), config.steps, sharding.logical_axes(params))


def _check_same_experiment(config: ConfigDict, workdir: AnyPath) -> None:
    for place in (workdir, *workdir.parents):
        if isinstance(place, Path) and place.is_file():
            raise ConfigError(f"{workdir} cannot be a run directory: {place} is a file. Choose another --workdir")
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path} is not JSON ({error}): choose another --workdir, or remove this one") from error
    different = resume.changed(before, json.loads(_as_json(config)))
    other = [key for key in different if key.split(".")[0] in _IDENTITY]
    if other:
        what = ", ".join("config.{} is {!r} there and {!r} here".format(key, *different[key]) for key in other)
        raise ConfigError(f"{workdir} holds another run: {what}. Choose another --workdir, or remove this one")
    for key, (was, is_now) in different.items():
        log.warning("config.%s differs from that of the run in %s: was %r, is %r", key, workdir, was, is_now)


def _as_json(config: ConfigDict) -> str:
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def _describe(config: ConfigDict, task: Task, workdir: AnyPath) -> None:
    """Writes what a reader of the run directory needs beside the weights."""
    workdir.mkdir(parents=True, exist_ok=True)
    artifacts = {name: x if isinstance(x, bytes) else x.encode() for name, x in task.artifacts.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in artifacts.items()}
    described = {
        "config.json": _as_json(config).encode(),
        **artifacts,
        "artifacts.json": (json.dumps(hashes, indent=2, sort_keys=True) + "\n").encode(),
    }
    for name, content in described.items():
        # A run that is stopped here must still find the old file, whole.
        unfinished = workdir / f"{name}.unfinished"
        unfinished.write_bytes(content)
        unfinished.replace(workdir / name)


def _report(config: ConfigDict, mesh, abstract_state, compiled, examples: int) -> None:
    for player, params in abstract_state.params.items():
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        log.info("%s: %s parameters", player, f"{count:,}")
    log.info("mesh %s over %d %s device(s)", dict(mesh.shape), mesh.size, mesh.devices.flat[0].device_kind)
    log.info("%s examples; %.2f epochs", f"{examples:,}", config.steps * config.data.batch_size / examples)
    plan = profiling.memory_plan(compiled)
    log.info("memory of the compiled step, per device:\n%s", plan)
    remedy = "lower config.data.batch_size, set config.model.remat, or spread the run over more devices (config.mesh.fsdp)"
    memory.require(plan.needed, mesh.local_devices[0], "the compiled step takes", remedy)


def _check_streak(metrics: dict, config: ConfigDict, step: int, checkpoints: Checkpoints) -> None:
    if int(metrics["streak"]) >= config.optim.max_skipped:
        norms = [float(norm) for name, norm in metrics.items() if name.startswith("grad_norm")]
        checkpoint = checkpoints.latest
        saved = "there is no checkpoint yet" if checkpoint is None else f"the checkpoint of step {checkpoint} is intact"
        raise FloatingPointError(
            f"the last {int(metrics['streak'])} updates up to step {step} had a non-finite loss or gradient and were "
            f"skipped (loss {float(metrics['loss'])}, grad_norm {norms}); {saved}. "
            "Lower config.optim.lr, lengthen config.optim.warmup_steps, or set config.model.dtype to float32"
        )
