"""Options of the trainer, and the check of a user's config. Options that a config does not set have their default.

A file under `configs/` sets only the options it changes; `resolve` adds the defaults. Every option can be overridden on
the command line (`--config.optim.lr=3e-4`), whether the file sets it or not.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from train_jax import task as task_lib
from train_jax.errors import ConfigError
from train_jax.options import Options, convert_type, join, option, suggest_option

MIRRORS = ("wandb", "trackio")
_PLAYER_OPTIONS = ("name", "lr", "schedule", "warmup_steps", "final_lr", "cooldown", "weight_decay", "clip", "args")


@dataclasses.dataclass(frozen=True)
class MeshOptions(Options):
    """Number of devices along each axis of the mesh. One axis may be -1, the remaining devices."""

    data: int = option(-1, "devices for data parallelism; -1: the remaining devices", least=-1)
    fsdp: int = option(1, "devices for FSDP: data parallelism with sharded parameters", least=-1)
    tensor: int = option(1, "devices for tensor parallelism, which share examples and split widths", least=-1)


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """Options of the training data."""

    source: str = option("", "data source: shapes, folder:PATH, webdataset:PATH, tfds:NAME, …; see train_jax.data.sources")
    split: str = option("train", "split of the source; slices such as train[10%:] are allowed")
    batch_size: int = option(256, "global batch size, over all devices and hosts", least=1)
    threads: int = option(4, "number of threads that read and decode, in each worker or without workers", least=1)
    workers: int = option(0, "number of worker processes that read and decode; 0: threads of the main process", least=0)
    shuffle_buffer: int = option(
        0, "for tars on remote storage: number of records, of shuffled tars, that are shuffled together; 0: all", least=0
    )
    max_broken: float = option(0.01, "maximum share of unreadable samples in training", least=0, most=1)
    max_broken_eval: float = option(
        0.0, "maximum share of unreadable images that evaluations may leave out", least=0, below=1
    )
    data_dir: str = option("", "directory of TFDS data sets; empty: the default of TFDS")
    templates: tuple[str, ...] = option((), "caption templates for data with labels only, such as 'a photo of a {}.'")

    leading_captions: int = option(
        1, "number of leading captions: the first is the most complete; of emoji, one of each language leads", least=1
    )
    leading_prob: float = option(
        0.0, "probability that a record's caption is one of the leading captions; else it is any", least=0, most=1
    )

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(bool(self.source), path, "source", "the name of a source, such as 'shapes' or 'folder:PATH'")


@dataclasses.dataclass(frozen=True)
class OptimOptions(Options):
    """Options of the optimiser of all players; `players` overrides options for individual players."""

    name: str = option("adamw", "name of an optimiser of optax or optax.contrib with a learning rate")
    lr: float = option(1e-3, "peak learning rate", above=0)
    schedule: str = option("cosine", "learning rate schedule after a linear warm-up: cosine, linear, rsqrt, constant, wsd")
    warmup_steps: int = option(0, "number of warm-up updates", least=0)
    final_lr: float = option(0.0, "final learning rate of cosine, linear and wsd as a share of lr", least=0, most=1)
    cooldown: float = option(0.2, "share of the updates in which wsd decays the learning rate, at the end", above=0, most=1)
    weight_decay: float = option(0.0, "decoupled weight decay, multiplied by the learning rate", least=0)
    clip: float = option(1.0, "maximum global norm of a player's gradient; 0: no clipping", least=0)
    args: FrozenConfigDict = option(FrozenConfigDict(), "further arguments of the optimiser, such as {'b2': 0.98}")
    # Decay only kernels: embeddings, positions and codebooks are not linear maps.
    no_decay: tuple[str, ...] = option(
        (r"(^|/)(?!kernel$)[^/]+$",), "regular expressions for parameters without weight decay"
    )
    freeze: tuple[str, ...] = option((), "regular expressions for frozen parameters")
    lr_scale: tuple = option((), "(regular expression, factor) pairs that scale lr; the first match counts")
    layer_decay: float = option(
        1.0, "factor of the updates from one block of a transformer to the block before it; 1: none", above=0, most=1
    )
    lora: tuple = option(
        (), "(regular expression, rank, alpha) triples: kernels that low-rank adapters change, all other parameters frozen"
    )
    players: FrozenConfigDict = option(FrozenConfigDict(), "player -> options that override the ones above")
    max_skipped: int = option(20, "maximum number of consecutive updates with non-finite gradients", least=1)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        for pair in self.lr_scale:
            is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
            if not (is_pair and isinstance(pair[1], int | float) and pair[1] > 0):
                raise ConfigError(
                    f"config.{path}.lr_scale holds {pair!r}; it must be pairs of a regular expression and a factor above 0, "
                    "such as (('vision', 0.1),)"
                )
        for triple in self.lora:
            is_triple = isinstance(triple, tuple | list) and len(triple) == 3 and isinstance(triple[0], str)
            if not (is_triple and isinstance(triple[1], int) and triple[1] > 0 and isinstance(triple[2], int | float)):
                raise ConfigError(
                    f"config.{path}.lora holds {triple!r}; it must be triples of a regular expression, a rank above 0 and "
                    "alpha, such as (('attention', 8, 16),)"
                )
        scaled, adapted = [pattern for pattern, _ in self.lr_scale], [pattern for pattern, *_ in self.lora]
        listed = {"no_decay": self.no_decay, "freeze": self.freeze, "lr_scale": scaled, "lora": adapted}
        for name, patterns in listed.items():
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise ConfigError(
                        f"config.{path}.{name}: {pattern!r} is not a regular expression: {error}"
                    ) from error


@dataclasses.dataclass(frozen=True)
class EmaOptions(Options):
    """Options of the exponential moving average of the weights, which is used for evaluation."""

    decay: float = option(0.0, "decay of the moving average; 0: no average", least=0, below=1)
    players: tuple[str, ...] = option((), "players whose weights are averaged; (): all players")


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(Options):
    """Options of the checkpoint schedule and of checkpoint retention."""

    every: int = option(1000, "number of updates between checkpoints", least=1)
    keep_last: int = option(2, "number of newest checkpoints to keep", least=1)
    keep_every: int = option(0, "also keep checkpoints at multiples of this step; 0: none", least=0)


@dataclasses.dataclass(frozen=True)
class TrainOptions(Options):
    """All options of the trainer. A task adds its own (`model`, `compute`, `tokenizer`, …)."""

    task: str = option("", "module of the task, such as clip_jax.task")
    seed: int = option(0, "random seed")
    steps: int = option(0, "total number of updates", least=1)
    log_every: int = option(50, "number of updates between logged metrics", least=1)
    mesh: MeshOptions = MeshOptions()
    data: DataOptions = DataOptions()
    optim: OptimOptions = OptimOptions()
    # Codebooks and running means are updated from all micro-batches together; statistics inside a loss (batch norm, LFQ's
    # entropy of the mean, the adaptive weight) are computed per micro-batch.
    accumulate: int = option(1, "number of micro-batches per update (gradient accumulation)", least=1)
    ema: EmaOptions = EmaOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    evals: FrozenConfigDict = option(FrozenConfigDict(), "name -> {type, every, …options of the type}; None: disabled")
    mirrors: tuple[str, ...] = option((), "where metrics are written besides metrics.jsonl and TensorBoard: wandb, trackio")
    hooks: tuple[str, ...] = option((), "subclasses of train_jax.hooks.Hook, such as train_jax.hooks.WeightHistograms")

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(
            self.data.batch_size % self.accumulate == 0,
            path,
            "accumulate",
            f"a divisor of data.batch_size = {self.data.batch_size}",
        )
        self.require(set(self.mirrors) <= set(MIRRORS), path, "mirrors", f"some of {', '.join(MIRRORS)}, such as ('wandb',)")
        allowed = f"in [0, steps = {self.steps})"
        self.require(self.optim.warmup_steps < self.steps, path, "optim.warmup_steps", allowed)


@dataclasses.dataclass(frozen=True)
class EvaluatorOptions(Options):
    """Options of every evaluator."""

    every: int = option(0, "number of updates between evaluations; 0: only at the end of training", least=0)
    source: str = option("", "data source; empty: the training source")
    split: str = option("test", "split of the source")
    where: tuple[str, ...] = option((), "conditions FIELD=VALUE, such as tone=: only the records that meet all of them")
    batch_size: int = option(64, "global batch size, over all devices and hosts", least=1)


def resolve(config: ConfigDict) -> ConfigDict:
    """Overlays the defaults of trainer and task with `config`, and checks the result.

    Evaluators that are None are removed; `evals = None` removes all of them. Raises ConfigError for an unknown option, a
    value of the wrong type, or a value out of range; the message names the option, the value and the allowed values.
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
    """Returns all options, from `config` or their defaults, without range checks.

    Options that a task derives from others are not set yet; see `resolve`.
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
        full.evals[name] = _resolve_evaluator(name, full.evals[name], module.EVALUATORS)
    for name, options in full.optim.players.items():
        _resolve_player(name, options, full.optim)
    return full


def documentation(config: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """Yields name, default and meaning of every option of the trainer, the task and its evaluators."""
    module = task_lib.module(config)
    yield from TrainOptions.documentation("")
    yield from module.OPTIONS.documentation("")
    for kind, options in module.EVALUATORS.items():
        yield from options.documentation(f"evals.<{kind}>")


def _copy(config: Mapping | ConfigDict) -> ConfigDict:
    return ConfigDict(config.to_dict() if isinstance(config, ConfigDict) else dict(config))


def _overlay(target: ConfigDict, source: ConfigDict, path: str, free: Collection[str] = ()) -> None:
    """Overwrites options of `target` with those of `source`. `free` lists groups with arbitrary option names."""
    for key, value in source.items():
        name = join(path, key)
        if path in free:
            target[key] = value
        elif key not in target:
            raise ConfigError(f"config.{name} is not an option{suggest_option(key, target, path)}")
        elif isinstance(target[key], ConfigDict):
            if not hasattr(value, "items"):
                known = ", ".join(target[key]) or "names of your choice"
                raise ConfigError(f"config.{name} = {value!r} must be a group of options: {known}")
            _overlay(target[key], value, name, free)
        else:
            target[key] = convert_type(f"config.{name}", value, target[key])


def _resolve_evaluator(name: str, options: object, types: Mapping[str, type[Options]]) -> ConfigDict:
    """Overlays the defaults of an evaluator's type with the user's options."""
    if not isinstance(options, ConfigDict):
        raise ConfigError(f"config.evals.{name} = {options!r} must be a group of options, with type, or None")
    if "type" not in options or options.type not in types:
        raise ConfigError(
            f"config.evals.{name}.type = {options.get('type')!r}; this task's evaluators are: {', '.join(types) or 'none'}"
        )
    full = ConfigDict({"type": "", **types[options.type].defaults()})
    _overlay(full, options, f"evals.{name}")
    return full


def _resolve_player(name: str, options: ConfigDict, optim: ConfigDict) -> None:
    """Checks names and types of the options of one player, in place."""
    path = f"optim.players.{name}"
    for key, value in options.items():
        if key not in _PLAYER_OPTIONS:
            raise ConfigError(f"config.{path}.{key} is not an option{suggest_option(key, _PLAYER_OPTIONS, path)}")
        if key != "args":
            with options.ignore_type():  # an int is a valid float
                options[key] = convert_type(f"config.{path}.{key}", value, optim[key])


def adopt(
    options: ConfigDict,
    stated: Mapping | ConfigDict,
    checkpoint: Mapping,
    path: str,
    free: Collection[str] = (),
    *,
    example: str,
) -> None:
    """Copies options of a pretrained checkpoint into `options`, except those that the user's config sets.

    Args:
      options: all options of a group; changed in place.
      stated: options that the user's config sets.
      checkpoint: options of the checkpoint.
      path: path of `options` in the config, such as "model".
      free: dotted paths below `path` of options that may differ from the checkpoint.
      example: name of a shipped config that starts from checkpoints, for the error message.

    Raises ConfigError if an option of the user contradicts the checkpoint.
    """
    for key, value in checkpoint.items():
        if isinstance(value, Mapping):
            free_in_group = [name.removeprefix(f"{key}.") for name in free if name.startswith(f"{key}.")]
            adopt(options[key], stated.get(key, {}), value, f"{path}.{key}", free_in_group, example=example)
            continue
        if key in options and isinstance(options[key], tuple):
            value = tuple(value)  # lists in JSON
        if key not in stated:
            options[key] = value
        elif options[key] != value and key not in free:
            raise ConfigError(
                f"config.{path}.{key} = {options[key]!r}, but the checkpoint of config.pretrained has {value!r}: leave it "
                f"out. An example of a config that leaves such options to the checkpoint is --config={example}"
            )
