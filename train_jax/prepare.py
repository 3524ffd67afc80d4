"""Preparation of a run from its config: mesh, task, data, evaluators and the traced training step."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from train_jax import agreement, feed, hooks, lora, mirrors, optim, paths, resume, run_directory, sharding
from train_jax import config as config_lib
from train_jax import task as task_lib
from train_jax.data import sources
from train_jax.data.stream import BROKEN, TrainStream
from train_jax.errors import ConfigError, LoadError
from train_jax.evaluation.evaluators import Evaluations
from train_jax.hooks import Hook
from train_jax.lockstep import Lockstep
from train_jax.paths import AnyPath
from train_jax.step import StatePlan, check_ema_players, make_train_step, plan_state
from train_jax.task import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Prepared run, ready to compile and start.

    Attributes:
      config: resolved config with all options.
      records: number of training records.
      stream: stream of training batches.
      state: plan of the initial state.
      step: training step, traced for the mesh and the batch but not compiled.
      hooks: hook classes.
      lockstep: coordination of the hosts.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    records: int
    stream: TrainStream
    evaluations: Evaluations
    state: StatePlan
    step: jax.stages.Traced
    lockstep: Lockstep
    hooks: Sequence[type[Hook]]

    def to_device(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Makes global arrays on the mesh from the local rows of a batch."""
        return feed.to_device(batch, sharding.batch_sharding(self.mesh), self.config.data.batch_size)


def prepare(
    config: ConfigDict,
    workdir: AnyPath | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> Prepared:
    """Makes mesh, task, data, evaluators and the training step of a config.

    Args:
      config: the user's config; missing options have their defaults.
      workdir: run directory, whose artifacts are reused if present; None: no run directory.
      devices: devices of the mesh; None: all.
      asked_to_stop: function that returns the number of the received stop signal of this host, or 0.

    Raises the errors of `train_jax.run` for all mistakes in the config. The step is traced, not compiled.
    """
    config = config_lib.resolve(config)
    optim.check_rules(config.optim, config.steps)  # before minutes of training a tokenizer
    hook_classes = hooks.import_classes(config.hooks)
    mirrors.import_packages(config.mirrors)
    agreement.check_connected()
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(mesh, config.data.batch_size, config.accumulate)
    if workdir is not None:
        check_same_experiment(config, workdir)
        if (workdir / "artifacts.json").is_file():
            run_directory.check_artifacts(workdir)
    task = make_task(config, workdir)
    source = sources.from_config(config.data)
    evaluations = Evaluations(config, task, mesh, asked_to_stop)
    if task.records is not None:
        _check_training(config, task)  # check now: computing records, such as codes, may take hours
    records = source if task.records is None else task.records(source)
    agreement.check_same(len(records), f"records of {source.name}")
    stream = TrainStream(
        records,
        task.example,
        batch_size=config.data.batch_size,
        seed=config.seed,
        rows=sharding.host_rows(sharding.batch_sharding(mesh), config.data.batch_size),
        threads=config.data.threads,
        workers=config.data.workers,
        shuffle_buffer=config.data.shuffle_buffer,
    )
    batch = feed.batch_shapes(stream, config.data.batch_size)
    lockstep = Lockstep(mesh)
    plan, step = trace_step(config, task, mesh, batch, lockstep.make_notice())
    return Prepared(
        config=config,
        mesh=mesh,
        task=task,
        records=len(source),
        stream=stream,
        evaluations=evaluations,
        state=plan,
        step=step,
        lockstep=lockstep,
        hooks=hook_classes,
    )


def make_task(config: ConfigDict, workdir: AnyPath | None) -> Task:
    """Makes the task of a resolved config, with the adapters of `config.optim.lora`, if any, in its parameters and its loss.

    Raises ConfigError for adapters of a task that starts from random weights.
    """
    task = task_lib.module(config).make(config, workdir)
    adapters = config.optim.lora
    if not adapters:
        return task
    if task.pretrained is None:
        raise ConfigError(
            "config.optim.lora adapts trained weights, and this run starts from random ones: set config.pretrained, or "
            "leave lora out"
        )

    def init(rng, batch):
        params, extra = task.init(rng, batch)
        return lora.add_adapters(params, adapters, config.optim.freeze, rng), extra

    def loss(params, *arguments):
        return task.loss(lora.merge(params), *arguments)

    return dataclasses.replace(task, init=init, loss=loss)


def trace_step(
    config: ConfigDict, task: Task, mesh: Mesh, batch: Mapping[str, jax.ShapeDtypeStruct], notice: Mapping[str, Any]
) -> tuple[StatePlan, jax.stages.Traced]:
    """Plans the state and traces the training step of a resolved config for batches of the given shapes."""
    example = {name: x for name, x in batch.items() if name != BROKEN}
    options = lora.freeze_kernels(config.optim)
    with jax.set_mesh(mesh):
        ema_players = tuple(config.ema.players) if config.ema.decay else ()
        if config.ema.decay and not ema_players:
            ema_players = tuple(jax.eval_shape(lambda x: task.init(jax.random.key(config.seed), x), example)[0])
        plan = plan_state(
            task,
            lambda params, axes: optim.make(options, params, config.steps, axes),
            mesh,
            example,
            seed=config.seed,
            ema_players=ema_players,
        )
        step = make_train_step(
            task,
            plan.optimizer,
            mesh,
            plan.abstract,
            seed=config.seed,
            accumulate=config.accumulate,
            ema_decay=config.ema.decay,
            freeze=options.freeze,
        )
        return plan, step.trace(plan.abstract, {**batch, **notice})


def _check_training(config: ConfigDict, task: Task) -> None:
    """Raises ConfigError for invalid options of the optimiser or the moving averages. Needs no data."""
    params, _ = jax.eval_shape(lambda: task.init(jax.random.key(config.seed), {}))
    check_ema_players(config.ema.players, params)
    options = lora.freeze_kernels(config.optim)
    optim.make(options, sharding.unbox(params), config.steps, sharding.logical_axes(params))


def check_same_experiment(config: ConfigDict, workdir: AnyPath) -> None:
    """Raises ConfigError if the run directory holds a different experiment.

    The experiments differ if an option that affects the weights differs. Differences of other options are logged.
    """
    for ancestor in (workdir, *workdir.parents):
        if isinstance(ancestor, Path) and ancestor.is_file():
            raise ConfigError(f"{workdir} cannot be a run directory: {ancestor} is a file. Choose another --workdir")
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path} is not JSON ({error}): remove {workdir}, or choose another --workdir") from error
    current = json.loads(as_json(config))
    mismatches = resume.compare_configs({"task": saved.get("task")}, {"task": current["task"]})
    mismatches = mismatches or resume.compare_configs(_identity_options(saved, workdir), _identity_options(current, workdir))
    if mismatches:
        details = ", ".join(
            f"config.{key} is {old!r} in the saved config and {new!r} in this one" for key, (old, new) in mismatches.items()
        )
        raise ConfigError(f"{workdir} holds another run: {details}. Remove it, or choose another --workdir")
    for key, (old, new) in resume.compare_configs(saved, current).items():
        log.warning("config.%s differs from the saved config of %s: saved %r, current %r", key, workdir, old, new)


def _identity_options(config: Mapping, workdir: AnyPath) -> dict[str, Any]:
    """Returns the options of a saved config that affect shapes or meaning of the weights."""
    try:
        options = task_lib.module(ConfigDict(config)).OPTIONS
        names = {field.name for field in dataclasses.fields(options)}
        task_options = {key: value for key, value in config.items() if key in names}
        return options.parse(task_options, "").identity()
    except (ConfigError, KeyError) as error:
        raise ConfigError(
            f"{workdir} holds a run of another version: {error}. Remove it, or choose another --workdir"
        ) from error


def as_json(config: ConfigDict) -> str:
    """Formats a config as JSON, with sorted keys."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def describe(config: ConfigDict, artifacts: Mapping[str, str | bytes], workdir: AnyPath) -> None:
    """Writes config, artifacts and hashes of the artifacts into the run directory."""
    workdir.mkdir(parents=True, exist_ok=True)
    artifacts = {name: x if isinstance(x, bytes) else x.encode() for name, x in artifacts.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in artifacts.items()}
    files = {
        "config.json": as_json(config).encode(),
        **artifacts,
        "artifacts.json": (json.dumps(hashes, indent=2, sort_keys=True) + "\n").encode(),
    }
    for name, content in files.items():
        paths.replace_file(workdir / name, content)
