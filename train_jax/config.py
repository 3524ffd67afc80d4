"""The trainer's options, and the check of a user's config: every option that is not stated has its default.

A file under `configs/` states what it changes; `resolve` fills in the rest. So every option can be overridden on the
command line (`--config.optim.lr=3e-4`), whether the file mentions it or not.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from train_jax import task as task_lib
from train_jax.errors import ConfigError
from train_jax.options import Options, join, option, suggestion, typed

_PLAYER_OPTIONS = ("name", "lr", "schedule", "warmup_steps", "final_lr", "weight_decay", "clip", "args")


@dataclasses.dataclass(frozen=True)
class MeshOptions(Options):
    """Devices along each axis of the mesh; one may be -1: the remaining devices."""

    data: int = option(-1, "each has its own examples", least=-1)
    fsdp: int = option(1, "as data, and parameters are split over them", least=-1)
    tensor: int = option(1, "share the examples; widths are split over them", least=-1)


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """The training data."""

    source: str = option("", "shapes, folder:PATH, webdataset:PATH, tfds:NAME, …; see train_jax.data.sources")
    split: str = option("train", "of the source; a share of it is train[10%:]")
    batch_size: int = option(256, "examples an update, over all devices and hosts", least=1)
    workers: int = option(0, "processes that read and decode; 0: threads of this one", least=0)
    max_broken: float = option(0.01, "share of unreadable samples past which training stops", least=0, most=1)
    max_broken_eval: float = option(0.0, "share of unreadable pictures that evaluations leave out", least=0, below=1)
    data_dir: str = option("", "where TFDS keeps its data sets; empty: TFDS's own place")
    templates: tuple[str, ...] = option((), "captions for data that has labels only, such as 'a photo of a {}.'")

    def check(self, path: str) -> None:
        self.require(bool(self.source), path, "source", "the name of a source, such as 'shapes' or 'folder:PATH'")


@dataclasses.dataclass(frozen=True)
class OptimOptions(Options):
    """The optimiser of all players; `players` overrides options of single ones."""

    name: str = option("adamw", "any of optax or optax.contrib that takes a learning rate")
    lr: float = option(1e-3, "peak learning rate", above=0)
    schedule: str = option("cosine", "after a linear warm-up: cosine, linear, rsqrt, constant")
    warmup_steps: int = option(0, "updates of the warm-up", least=0)
    final_lr: float = option(0.0, "where cosine and linear end, as a share of lr", least=0, most=1)
    weight_decay: float = option(0.0, "decoupled: multiplied by the learning rate", least=0)
    clip: float = option(1.0, "largest global norm of a player's gradient; 0: no clipping", least=0)
    args: FrozenConfigDict = option(FrozenConfigDict(), "further arguments of the optimiser, such as {'b2': 0.98}")
    # All but kernels: embeddings, positions and codebooks are no linear maps.
    no_decay: tuple[str, ...] = option((r"(^|/)(?!kernel$)[^/]+$",), "regular expressions of parameters without decay")
    freeze: tuple[str, ...] = option((), "regular expressions of parameters that never change")
    lr_scale: tuple = option((), "(regular expression, factor) pairs: multiples of lr; the first that matches counts")
    players: FrozenConfigDict = option(FrozenConfigDict(), "player -> options above that differ for it")
    max_skipped: int = option(20, "updates in a row with non-finite gradients before training stops", least=1)

    def check(self, path: str) -> None:
        for pair in self.lr_scale:
            is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
            if not (is_pair and isinstance(pair[1], int | float) and pair[1] > 0):
                raise ConfigError(
                    f"config.{path}.lr_scale holds {pair!r}; it must be pairs of a regular expression and a factor above 0, "
                    "such as (('vision', 0.1),)"
                )
        scaled = [pattern for pattern, _ in self.lr_scale]
        for name, patterns in (("no_decay", self.no_decay), ("freeze", self.freeze), ("lr_scale", scaled)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise ConfigError(
                        f"config.{path}.{name}: {pattern!r} is not a regular expression: {error}"
                    ) from error


@dataclasses.dataclass(frozen=True)
class EmaOptions(Options):
    """A moving average of the weights, with which a run is evaluated."""

    decay: float = option(0.0, "0: no average", least=0, below=1)
    players: tuple[str, ...] = option((), "whose weights; (): all players'")


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(Options):
    """The schedule of checkpoints, and which of them are kept."""

    every: int = option(1000, "updates between two", least=1)
    keep_last: int = option(2, "the newest so many", least=1)
    keep_every: int = option(0, "and those of steps that this divides; 0: none", least=0)


@dataclasses.dataclass(frozen=True)
class TrainOptions(Options):
    """Every option of the trainer; a task adds its own (`model`, `compute`, `tokenizer`, …)."""

    task: str = option("", "module of the task, such as clip_jax.task")
    seed: int = option(0, "of everything random")
    steps: int = option(0, "optimiser updates", least=1)
    log_every: int = option(50, "updates between two lines of metrics", least=1)
    mesh: MeshOptions = MeshOptions()
    data: DataOptions = DataOptions()
    optim: OptimOptions = OptimOptions()
    # Codebooks and running means see all micro-batches at once; what a loss itself takes over its examples (batch norm,
    # LFQ's entropy of the mean, the adaptive weight) is each micro-batch's own.
    accumulate: int = option(1, "micro-batches an update", least=1)
    ema: EmaOptions = EmaOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    evals: FrozenConfigDict = option(FrozenConfigDict(), "name -> {type, every, …options of that type}; None: left out")
    hooks: tuple[str, ...] = option((), "classes of train_jax.hooks.Hook, such as train_jax.hooks.WeightHistograms")

    def check(self, path: str) -> None:
        self.require(
            self.data.batch_size % self.accumulate == 0,
            path,
            "accumulate",
            f"a divisor of data.batch_size = {self.data.batch_size}",
        )
        allowed = f"in [0, steps = {self.steps})"
        self.require(self.optim.warmup_steps < self.steps, path, "optim.warmup_steps", allowed)


@dataclasses.dataclass(frozen=True)
class EvaluatorOptions(Options):
    """Options that every evaluator has."""

    every: int = option(0, "updates between two evaluations; 0: at the end alone", least=0)
    source: str = option("", "of the data; empty: that of training")
    split: str = option("test", "of the source")
    batch_size: int = option(64, "examples at a time, over all devices and hosts", least=1)


def resolve(config: ConfigDict) -> ConfigDict:
    """Completes and checks a config: the defaults of trainer and task, overlaid with `config`.

    An evaluator that is None is left out, and with `evals = None` all are. Raises ConfigError that names the key, the value
    seen and what is allowed, for an unknown key, a value of the wrong type, or one out of its range.
    """
    config = _copy(config)
    full = fill(config)
    module = task_lib.module(full)
    if hasattr(module, "complete"):
        module.complete(full, config)
    for options in (TrainOptions, module.OPTIONS):
        options.parse({field.name: full[field.name] for field in dataclasses.fields(options)}, "")
    for name, options in full.evals.items():
        module.EVALUATORS[options.type].parse({key: x for key, x in options.items() if key != "type"}, f"evals.{name}")
    for name, options in full.optim.players.items():
        shared = {key: options.get(key, full.optim[key]) for key in _PLAYER_OPTIONS}
        path = f"optim.players.{name}"
        player = OptimOptions.parse(shared, path)
        player.require(player.warmup_steps < full.steps, path, "warmup_steps", f"in [0, steps = {full.steps})")
    return full


def fill(config: ConfigDict) -> ConfigDict:
    """Returns every option, from `config` or its default, without options derived from others and without range
    checks.
    """
    config = _copy(config)
    evals = config.get("evals")
    if isinstance(evals, ConfigDict) or evals is None:
        config.evals = ConfigDict({name: options for name, options in (evals or {}).items() if options is not None})
    module = task_lib.module(config)
    full = TrainOptions.defaults()
    for key, value in module.OPTIONS.defaults().items():
        full[key] = value
    _overlay(full, config, "", free={"optim.args", "optim.players", "evals"})
    for name in full.evals:
        full.evals[name] = _evaluator(name, full.evals[name], module.EVALUATORS)
    for name, options in full.optim.players.items():
        _player(name, options, full.optim)
    return full


def documentation(config: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """Lists name, default and meaning of every option of the trainer, the config's task and its evaluators."""
    module = task_lib.module(config)
    yield from TrainOptions.documentation("")
    yield from module.OPTIONS.documentation("")
    for kind, options in module.EVALUATORS.items():
        yield from options.documentation(f"evals.<{kind}>")


def _copy(config: Mapping | ConfigDict) -> ConfigDict:
    return ConfigDict(config.to_dict() if isinstance(config, ConfigDict) else dict(config))


def _overlay(target: ConfigDict, source: ConfigDict, path: str, free: Collection[str] = ()) -> None:
    """Sets the options of `target` that `source` states. `free`: groups whose names are the user's own."""
    for key, value in source.items():
        name = join(path, key)
        if path in free:
            target[key] = value
        elif key not in target:
            raise ConfigError(f"config.{name} is not an option{suggestion(key, target, path)}")
        elif isinstance(target[key], ConfigDict):
            if not hasattr(value, "items"):
                raise ConfigError(f"config.{name} = {value!r} must be a group of options: {', '.join(target[key])}")
            _overlay(target[key], value, name, free)
        else:
            target[key] = typed(f"config.{name}", value, target[key])


def _evaluator(name: str, options: object, types: Mapping[str, type[Options]]) -> ConfigDict:
    if not isinstance(options, ConfigDict):
        raise ConfigError(f"config.evals.{name} = {options!r} must be a group of options, with type, or None")
    if "type" not in options or options.type not in types:
        raise ConfigError(
            f"config.evals.{name}.type = {options.get('type')!r}; this task's evaluators are: {', '.join(types) or 'none'}"
        )
    full = ConfigDict({"type": "", **types[options.type].defaults()})
    _overlay(full, options, f"evals.{name}")
    return full


def _player(name: str, options: ConfigDict, optim: ConfigDict) -> None:
    path = f"optim.players.{name}"
    for key, value in options.items():
        if key not in _PLAYER_OPTIONS:
            raise ConfigError(f"config.{path}.{key} is not an option{suggestion(key, _PLAYER_OPTIONS, path)}")
        if key != "args":
            with options.ignore_type():  # a whole number is a fine float
                options[key] = typed(f"config.{path}.{key}", value, optim[key])


def adopt(
    options: ConfigDict,
    stated: Mapping | ConfigDict,
    checkpoint: Mapping,
    path: str,
    free: Collection[str] = (),
    *,
    example: str,
) -> None:
    """Sets the options that a checkpoint decides, each of `checkpoint`, unless the user stated it.

    Args:
      options: complete; changed in place.
      stated: those that the user's config holds.
      path: of `options` in the config, such as "model".
      free: options, by their dotted path below `path`, that the user may choose otherwise.
      example: name of a shipped config that starts from checkpoints.

    Raises ConfigError where the user's own contradict the checkpoint.
    """
    for key, value in checkpoint.items():
        if isinstance(value, Mapping):
            inside = [name.removeprefix(f"{key}.") for name in free if name.startswith(f"{key}.")]
            adopt(options[key], stated.get(key, {}), value, f"{path}.{key}", inside, example=example)
            continue
        if key in options and isinstance(options[key], tuple):
            value = tuple(value)  # lists in JSON
        if key not in stated:
            options[key] = value
        elif options[key] != value and key not in free:
            raise ConfigError(
                f"config.{path}.{key} = {options[key]!r}, but the checkpoint of config.pretrained has {value!r}: leave it "
                f"out. A config that leaves such options to the checkpoint is --config={example}"
            )
