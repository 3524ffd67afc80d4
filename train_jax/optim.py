"""Optimisers from a config by optax: schedules, one rule per player; decay, clipping and freezing by parameter path."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from train_jax.errors import ConfigError
from train_jax.sharding import path_name

FROZEN = "frozen"
_STACKED = ("layers", "qkv")  # axes along which a kernel is several matrices
SCHEDULES = ("cosine", "linear", "rsqrt", "constant")


class Optimizer(NamedTuple):
    """One optax transformation for all players, and each player's learning rate: updates made -> rate."""

    tx: optax.GradientTransformation
    schedules: Mapping[str, Callable]


def make(optim: ConfigDict, params, steps: int, axes: Mapping[str, tuple[str | None, ...]]) -> Optimizer:
    """Makes the optimiser of a config.

    Args:
      optim: the `optim` part of a resolved config.
      params: dict by player of (abstract) arrays; only its paths matter.
      steps: updates in the whole run.
      axes: parameter path -> logical axis names, for optimisers that treat matrices apart (Muon).

    Each player's gradient is clipped to its own global norm, then updated by its own rule. Weight decay is left out
    where a path matches `optim.no_decay`; a path that matches `optim.freeze` gets no update and no moments; the first
    pattern of `optim.lr_scale` that matches a path multiplies its learning rate, and with it its decay.
    Raises ConfigError for an unknown optimiser, schedule, argument or player, and for a `freeze` pattern that matches
    nothing.
    """
    _check_patterns(optim, axes)
    unknown = set(optim.players) - set(params)
    if unknown:
        raise ConfigError(f"config.optim.players names {sorted(unknown)}; this task's players are {sorted(params)}")
    clips, rules, schedules = {}, {FROZEN: optax.set_to_zero()}, {}
    for player in params:
        options = _player_options(optim, player)
        schedules[player] = schedule(options, steps)
        clips[player] = optax.clip_by_global_norm(options.clip) if options.clip else optax.identity()
        for factor in {1.0, *(factor for _, factor in optim.lr_scale)}:
            for decayed in (True, False):
                rate = _scaled(schedules[player], factor)
                rules[_group(player, decayed, factor)] = _optimiser(options, rate, decayed, axes)

    def group(path, _):
        name = path_name(path)
        if matches(optim.freeze, name):
            return FROZEN
        factor = next((factor for pattern, factor in optim.lr_scale if re.search(pattern, name)), 1.0)
        return _group(name.split("/")[0], not matches(optim.no_decay, name), factor)

    def group_for_clipping(path, _):
        name = path_name(path)
        return FROZEN if matches(optim.freeze, name) else name.split("/")[0]

    tx = optax.chain(
        optax.partition(clips | {FROZEN: optax.set_to_zero()}, _labels(params, group_for_clipping)),
        optax.partition(rules, _labels(params, group)),
    )
    return Optimizer(tx, schedules)


def schedule(optim: ConfigDict, steps: int) -> Callable:
    """Makes the learning rate schedule: a linear warm-up from 0 to `lr`, then the shape that `optim.schedule` names.

    It counts the updates that were made: a skipped one does not move it on, so that cosine and linear, which end at
    `final_lr * lr` after `steps` updates, end that much later. rsqrt decays as 1/sqrt(update), continuous at the end
    of the warm-up (arXiv 1706.03762, equation 3, with the peak in place of the width).
    """
    lr, warmup, end = optim.lr, optim.warmup_steps, optim.lr * optim.final_lr
    after = steps - warmup
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(lr, after, alpha=optim.final_lr),
        "linear": lambda: optax.linear_schedule(lr, end, after),
        "rsqrt": lambda: lambda count: lr * (max(warmup, 1) / (jnp.maximum(count, 0) + max(warmup, 1))) ** 0.5,
        "constant": lambda: optax.constant_schedule(lr),
    }
    if optim.schedule not in shapes:
        raise ConfigError(f"config.optim.schedule = {optim.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
    return optax.join_schedules([optax.linear_schedule(0.0, lr, max(warmup, 1)), shapes[optim.schedule]()], [warmup])


def set_schedule_counts(opt_state, updates):
    """Sets the counters of an optimiser's state, so that schedules continue after so many updates."""

    def is_schedule_state(x):
        # A schedule's state is a count alone; an optimiser's own, Adam's for one, has moments beside it.
        return getattr(x, "_fields", None) == ("count",)

    return jax.tree.map(
        lambda x: x._replace(count=jnp.asarray(updates, x.count.dtype)) if is_schedule_state(x) else x,
        opt_state,
        is_leaf=is_schedule_state,
    )


def by_path(tree) -> dict[str, jax.Array]:
    """Maps path names to the leaves of a tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def replace_rows(tree, moved: Mapping[str, jax.Array], values: Mapping[str, jax.Array]):
    """Replaces moved rows by those of `values`, in every leaf of `tree` whose path ends with that of their parameter.

    moved: path of a parameter -> bool [rows]. values: path of a parameter -> what broadcasts to its shape.
    """

    def replaced(path, leaf):
        name = path_name(path)
        for parameter, rows in moved.items():
            if (name == parameter or name.endswith(f"/{parameter}")) and leaf.shape[:1] == rows.shape:
                return jnp.where(jnp.expand_dims(rows, tuple(range(1, leaf.ndim))), values[parameter], leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(replaced, tree)


def reset_moments(opt_state, moved: Mapping[str, jax.Array], params):
    """Resets to zero the moments of parameter rows that moved by a rule.

    A schedule-free optimiser's `z`, a second iterate and no moment, moves to where they are now.
    """
    opt_state = replace_rows(opt_state, moved, dict.fromkeys(moved, jnp.zeros(())))
    values = by_path(params)
    return jax.tree.map(
        lambda s: s._replace(z=replace_rows(s.z, moved, values)) if _is_schedule_free(s) else s,
        opt_state,
        is_leaf=_is_schedule_free,
    )


def has_average(opt_state) -> bool:
    """Whether the optimiser keeps its own average of the weights, which is the one to evaluate."""
    return bool(_schedule_free_states(opt_state))


def evaluation_params(opt_state, params):
    """Selects the weights to evaluate: `params`, or for a schedule-free optimiser its average (arXiv 2405.15682,
    equation 3).
    """
    for state in _schedule_free_states(opt_state):  # each holds `z` for its own group of parameters alone
        z = {path_name(path): value for path, value in jax.tree_util.tree_leaves_with_path(state.z)}
        params = jax.tree_util.tree_map_with_path(
            lambda path, y, z=z, b1=state.b1: (y - (1 - b1) * z[path_name(path)]) / b1 if path_name(path) in z else y,
            params,
        )
    return params


def _is_schedule_free(x) -> bool:
    return hasattr(x, "z") and hasattr(x, "b1")


def _schedule_free_states(opt_state) -> list:
    return [s for s in jax.tree.leaves(opt_state, is_leaf=_is_schedule_free) if _is_schedule_free(s)]


def _player_options(optim: ConfigDict, player: str) -> ConfigDict:
    options = optim.copy_and_resolve_references()
    with options.unlocked():
        for key, value in optim.players.get(player, {}).items():
            options[key] = value
    return options


def _optimiser(
    optim: ConfigDict, learning_rate: Callable, decayed: bool, axes: Mapping
) -> optax.GradientTransformation:
    """Builds the optax optimiser `optim.name`, with its arguments for rate, decay and matrix shapes."""
    make_rule = _find(optim.name)
    allowed = inspect.signature(make_rule).parameters
    arguments = dict(optim.args)
    for reserved in {"learning_rate", "weight_decay", "weight_decay_rate", "mask", "weight_decay_mask"} & set(
        arguments
    ):
        raise ConfigError(f"config.optim.args.{reserved}: set it by config.optim.lr, weight_decay or no_decay")
    for key in set(arguments) - set(allowed):
        raise ConfigError(f"config.optim.args.{key}: optax's {optim.name} takes {', '.join(allowed)}")
    decay = optim.weight_decay if decayed else 0.0
    if "weight_decay_rate" in allowed:  # Adafactor's rate is not multiplied by the learning rate: do it here
        arguments["weight_decay_rate"] = (lambda count: decay * learning_rate(count)) if decay else None
    elif "weight_decay" in allowed:
        arguments["weight_decay"] = decay
    elif optim.weight_decay:
        raise ConfigError(
            f"config.optim.weight_decay = {optim.weight_decay}, but optax's {optim.name} has no weight decay: "
            "set it to 0, or use adamw, lion, adafactor, …"
        )
    if "adam_weight_decay" in allowed:
        arguments.setdefault("adam_weight_decay", decay)
    if "muon_weight_dimension_numbers" in allowed:
        arguments["muon_weight_dimension_numbers"] = lambda params: jax.tree_util.tree_map_with_path(
            lambda path, x: _muon_dimension_numbers(path_name(path), axes), params
        )
    return make_rule(learning_rate=learning_rate, **arguments)


def _find(name: str) -> Callable:
    home, _, function = name.rpartition(".")
    rule = getattr({"": optax, "contrib": optax.contrib}.get(home), function, None)
    if not callable(rule) or "learning_rate" not in inspect.signature(rule).parameters:
        raise ConfigError(
            f"config.optim.name = {name!r} is not an optimiser of optax: name one as 'adamw', 'lion', 'adafactor', "
            "'contrib.muon', 'contrib.schedule_free_adamw'"
        )
    return rule


def _muon_dimension_numbers(path: str, axes: Mapping[str, tuple[str | None, ...]]):
    """Selects the axes of a kernel that Muon orthogonalises, inputs against outputs; None for what is no kernel."""
    if not path.endswith("/kernel"):
        return None
    names = axes[path]
    unstacked_axes = tuple(i for i, name in enumerate(names) if name not in _STACKED)
    if len(unstacked_axes) < 2:
        return None
    inputs = unstacked_axes[:1] if names[unstacked_axes[0]] == "embed" else unstacked_axes[:-1]
    return optax.contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=unstacked_axes[len(inputs) :])


def _group(player: str, decayed: bool, factor: float) -> str:
    """Names a group of parameters with one rule, also in checkpoints."""
    return f"{player}, {'decayed' if decayed else 'not decayed'}, lr x {factor:g}"


def _scaled(rate: Callable, factor: float) -> Callable:
    return rate if factor == 1.0 else lambda count: factor * rate(count)


def _labels(params, group: Callable):
    return jax.tree_util.tree_map_with_path(group, params)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of these regular expressions matches within a parameter's path."""
    return any(re.search(pattern, name) for pattern in patterns)


def _check_patterns(optim: ConfigDict, axes: Mapping) -> None:
    scaled = [pattern for pattern, _ in optim.lr_scale]
    for option, patterns in (("freeze", optim.freeze), ("lr_scale", scaled)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in axes):
                some = ", ".join(sorted(axes)[:8])
                stacked = any("/blocks/" in name for name in axes)
                hint = ". Blocks are stacked: with config.compute.scan = False each has its own name, block_0 …"
                raise ConfigError(
                    f"config.optim.{option}: {pattern!r} matches no parameter; they are named {some}, …{hint * stacked}"
                )
