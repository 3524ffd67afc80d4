"""What a config may say: every option of the trainer with its default, and the check of a user's config against it.

A file under `configs/` states what it changes; `resolve` fills in the rest. So every option can be overridden on the
command line (`--config.optim.lr=3e-4`), whether the file mentions it or not.
"""

import difflib
import re
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from train_jax import task as task_lib
from train_jax.errors import ConfigError

# Options whose keys are the user's own: optax arguments, names of players and of evaluators.
_FREE = {"optim.args", "optim.players", "evals"}
_PLAYER_OPTIONS = ("name", "lr", "schedule", "warmup_steps", "final_lr", "weight_decay", "clip", "args")


def defaults() -> ConfigDict:
    """Every option that the trainer itself understands; a task adds its own (`model`, `tokenizer`, …)."""
    c = ConfigDict()
    c.task = ""  # module of the task, such as "clip_jax.task"
    c.seed = 0
    c.steps = 0  # optimiser updates
    c.log_every = 50

    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # devices along each axis; one may be -1: what is left

    c.data = ConfigDict()
    c.data.source = ""  # see train_jax.data.sources: "shapes", "folder:PATH", "webdataset:PATH", "tfds:NAME"
    c.data.split = "train"
    c.data.batch_size = 256  # over all devices and hosts
    c.data.workers = 0  # processes that read and decode; 0: threads of this one
    c.data.max_broken = 0.01  # share of unreadable samples past which training stops
    c.data.max_broken_eval = 0.0  # share of unreadable pictures that evaluations may leave out
    c.data.data_dir = ""  # where TFDS keeps its data sets; "": TFDS's own default
    c.data.templates = ()  # captions for data sets that have labels only: ("a photo of a {}.",)

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # any of optax or optax.contrib that takes a learning rate
    c.optim.lr = 1e-3
    c.optim.schedule = "cosine"  # cosine, linear, rsqrt, constant; each after a linear warm-up
    c.optim.warmup_steps = 0
    c.optim.final_lr = 0.0  # where cosine and linear end, as a share of lr
    c.optim.weight_decay = 0.0  # decoupled: multiplied by the learning rate
    c.optim.clip = 1.0  # largest global norm of a player's gradient; 0: no clipping
    c.optim.args = ConfigDict()  # further arguments of the optimiser, such as {"b2": 0.98}
    # Regular expressions on parameter paths. The default: all but kernels. Embeddings, positions and codebooks are no maps.
    c.optim.no_decay = (r"(^|/)(?!kernel$)[^/]+$",)
    c.optim.freeze = ()  # the same: parameters that never change
    c.optim.lr_scale = ()  # (pattern, factor) pairs: multiples of the learning rate; the first that matches counts
    c.optim.players = ConfigDict()  # player -> options above that differ for it
    c.optim.max_skipped = 20  # updates in a row with non-finite gradients before training stops

    # Micro-batches an update. Codebooks and running means see all of it at once; what a loss itself takes over its examples
    # (batch norm, LFQ's entropy of the mean, the adaptive weight) is each micro-batch's own.
    c.accumulate = 1
    c.ema = ConfigDict({"decay": 0.0, "players": ()})  # average of the weights; 0: none; (): of every player

    c.checkpoint = ConfigDict({"every": 1000, "keep_last": 2, "keep_every": 0})
    c.evals = ConfigDict()  # name -> {type, every, …options of that type}
    c.hooks = ()  # classes of train_jax.hooks.Hook by name, such as "train_jax.hooks.WeightHistograms"
    return c


def resolve(config: ConfigDict) -> ConfigDict:
    """The complete, checked config: defaults of the trainer and of the task, overlaid with `config`.

    An evaluator that is None is left out, and with `evals = None` all are. Raises ConfigError that names the key, the value
    seen and what is allowed, for an unknown key, a value of the wrong type, or one out of its range.
    """
    config = _copy(config)
    full = fill(config)
    module = task_lib.module(full)
    if hasattr(module, "complete"):
        module.complete(full, config)
    _check_ranges(full)
    return full


def fill(config: ConfigDict) -> ConfigDict:
    """Every option, as `config` or its default has it; not yet those that follow from others, nor any range checked."""
    config = _copy(config)
    evals = config.get("evals")
    if isinstance(evals, ConfigDict) or evals is None:
        config.evals = ConfigDict({name: options for name, options in (evals or {}).items() if options is not None})
    full = defaults()
    task_part = task_lib.module(config).defaults()
    evaluators = task_part.get("evaluators", ConfigDict())
    for key, value in task_part.items():
        if key != "evaluators":
            full[key] = value
    _overlay(full, config, "")
    for name in full.evals:
        full.evals[name] = _evaluator(name, full.evals[name], evaluators)
    for name, options in full.optim.players.items():
        _player(name, options, full.optim)
    return full


def _copy(config: Mapping | ConfigDict) -> ConfigDict:
    return ConfigDict(config.to_dict() if isinstance(config, ConfigDict) else dict(config))


def _overlay(target: ConfigDict, source: ConfigDict, path: str) -> None:
    for key, value in source.items():
        here = f"{path}{key}"
        if path.rstrip(".") in _FREE:
            target[key] = value
            continue
        if key not in target:
            raise ConfigError(f"config.{here} is not an option{_suggest(key, target, path)}")
        if isinstance(target[key], ConfigDict):
            if not hasattr(value, "items"):
                raise ConfigError(f"config.{here} = {value!r} must be a group of options: {', '.join(target[key])}")
            _overlay(target[key], value, here + ".")
        else:
            target[key] = _typed(here, value, target[key])


def _typed(path: str, value, default):
    """`value` in the type of `default`; an int is a fine float, a list a fine tuple, and nothing else converts."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    if type(value) is not type(default):
        wanted = type(default).__name__
        raise ConfigError(
            f"config.{path} = {value!r} is a {type(value).__name__}; it must be a {wanted}, like {default!r}"
        )
    return value


def _suggest(key: str, options, path: str) -> str:
    close = difflib.get_close_matches(key, list(options), n=1)
    hint = f"; did you mean config.{path}{close[0]}?" if close else "."
    return f"{hint} Options here: {', '.join(sorted(options))}"


def _evaluator(name: str, options: object, types: ConfigDict) -> ConfigDict:
    if not isinstance(options, ConfigDict):
        raise ConfigError(f"config.evals.{name} = {options!r} must be a group of options, with type, or None")
    if "type" not in options or options.type not in types:
        raise ConfigError(
            f"config.evals.{name}.type = {options.get('type')!r}; this task's evaluators are: {', '.join(types) or 'none'}"
        )
    full = ConfigDict({"type": "", "every": 0})  # every: steps between two evaluations; 0: at the end alone
    for key, value in types[options.type].items():
        full[key] = value
    _overlay(full, options, f"evals.{name}.")
    return full


def _player(name: str, options: ConfigDict, optim: ConfigDict) -> None:
    for key, value in options.items():
        if key not in _PLAYER_OPTIONS:
            allowed = dict.fromkeys(_PLAYER_OPTIONS)
            raise ConfigError(
                f"config.optim.players.{name}.{key} is not an option{_suggest(key, allowed, f'optim.players.{name}.')}"
            )
        if key != "args":
            with options.ignore_type():  # a whole number is a fine float
                options[key] = _typed(f"optim.players.{name}.{key}", value, optim[key])


def _check_ranges(c: ConfigDict) -> None:
    def require(condition: bool, path: str, value, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"config.{path} = {value!r}; it must be {allowed}")

    require(c.steps >= 1, "steps", c.steps, "at least 1")
    require(c.log_every >= 1, "log_every", c.log_every, "at least 1")
    require(
        bool(c.data.source),
        "data.source",
        c.data.source,
        "the name of a source, such as 'shapes' or 'folder:PATH'",
    )
    require(c.data.batch_size >= 1, "data.batch_size", c.data.batch_size, "at least 1")
    require(c.data.workers >= 0, "data.workers", c.data.workers, "0 or more")
    require(0 <= c.data.max_broken <= 1, "data.max_broken", c.data.max_broken, "a share in [0, 1]")
    require(0 <= c.data.max_broken_eval < 1, "data.max_broken_eval", c.data.max_broken_eval, "a share in [0, 1)")
    for player, options in {"": {}, **c.optim.players}.items():
        at = f"optim.players.{player}" if player else "optim"
        o = {key: options.get(key, c.optim[key]) for key in _PLAYER_OPTIONS}
        require(o["lr"] > 0, f"{at}.lr", o["lr"], "positive")
        warmup = o["warmup_steps"]
        require(0 <= warmup < c.steps, f"{at}.warmup_steps", warmup, f"in [0, steps = {c.steps})")
        require(0 <= o["final_lr"] <= 1, f"{at}.final_lr", o["final_lr"], "a share of lr in [0, 1]")
        require(o["weight_decay"] >= 0, f"{at}.weight_decay", o["weight_decay"], "0 or more")
        require(o["clip"] >= 0, f"{at}.clip", o["clip"], "0 (no clipping) or more")
    require(c.optim.max_skipped >= 1, "optim.max_skipped", c.optim.max_skipped, "at least 1")
    _check_patterns(c.optim)
    require(c.accumulate >= 1, "accumulate", c.accumulate, "at least 1")
    require(
        c.data.batch_size % c.accumulate == 0,
        "accumulate",
        c.accumulate,
        f"a divisor of data.batch_size = {c.data.batch_size}",
    )
    require(0 <= c.ema.decay < 1, "ema.decay", c.ema.decay, "in [0, 1)")
    require(c.checkpoint.every >= 1, "checkpoint.every", c.checkpoint.every, "at least 1")
    require(c.checkpoint.keep_last >= 1, "checkpoint.keep_last", c.checkpoint.keep_last, "at least 1")
    require(c.checkpoint.keep_every >= 0, "checkpoint.keep_every", c.checkpoint.keep_every, "0 (none) or more")
    for name, options in c.evals.items():
        require(options.every >= 0, f"evals.{name}.every", options.every, "0 (at the end alone) or more")
        for key, least in {"batch_size": 1, "most": 0, "gallery": 0, "bootstrap": 0, "shown": 0}.items():
            require(options.get(key, least) >= least, f"evals.{name}.{key}", options.get(key), f"at least {least}")


def _check_patterns(optim: ConfigDict) -> None:
    for pair in optim.lr_scale:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if not (is_pair and isinstance(pair[1], int | float) and pair[1] > 0):
            raise ConfigError(
                f"config.optim.lr_scale holds {pair!r}; it must be pairs of a regular expression and a factor above 0, such "
                "as (('vision', 0.1),)"
            )
    scaled = [pattern for pattern, _ in optim.lr_scale]
    for option, patterns in (("no_decay", optim.no_decay), ("freeze", optim.freeze), ("lr_scale", scaled)):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ConfigError(f"config.optim.{option}: {pattern!r} is not a regular expression: {error}") from error


def adopt(
    options: ConfigDict,
    stated: Mapping | ConfigDict,
    checkpoint: Mapping,
    path: str,
    free: Collection[str] = (),
    *,
    example: str,
) -> None:
    """Options that follow from a checkpoint: each of `checkpoint` is set, unless the user stated it.

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
