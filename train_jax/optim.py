"""Optax optimisers from a config: schedules, one rule per player, and decay, clipping and freezing by parameter path."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from train_jax.errors import ConfigError
from train_jax.lora import kernel_path
from train_jax.sharding import kernel_axes, path_name

FROZEN = "frozen"
SCHEDULES = ("cosine", "linear", "rsqrt", "constant", "wsd")
# Names of a transformer's siblings that come before it: embeddings, and what is applied to them.
_INPUTS = ("tokens", "positions", "cls", "registers", "stem", "norm_pre", "codes", "code_norm", "start")
_CONDITION = ("condition", "condition_norm")  # of those, what an encoder reads if there is one


class Optimizer(NamedTuple):
    """Optimiser of all players.

    Attributes:
      tx: optax transformation.
      schedules: player -> learning rate as a function of the number of completed updates.
    """

    tx: optax.GradientTransformation
    schedules: Mapping[str, Callable]


def make(optim: ConfigDict, params, steps: int, axes: Mapping[str, tuple[str | None, ...]]) -> Optimizer:
    """Makes the optimiser of a config.

    Args:
      optim: the options `optim` of a resolved config.
      params: player -> tree of (abstract) arrays; only the paths are used.
      steps: total number of updates of the run.
      axes: parameter path -> logical axis names, for optimisers with a special rule for matrices (Muon).

    The gradient of each player is clipped to a global norm, then updated by the rule of the player. Parameters that match
    `optim.no_decay` have no weight decay; parameters that match `optim.freeze` have no updates and no moments; the first
    matching pattern of `optim.lr_scale` scales the learning rate of a parameter and thereby its decay. `optim.layer_decay`
    scales the updates of the blocks of a transformer; see `layer_scales`.
    Raises ConfigError for an unknown optimiser, schedule, argument or player, for a `freeze` or `lr_scale` pattern that
    matches nothing, and if everything is frozen.
    """
    _check_patterns(optim, axes)
    if all(matches(optim.freeze, name) for name in axes):
        raise ConfigError(f"config.optim.freeze = {tuple(optim.freeze)} freezes all parameters: there is nothing to train")
    unknown = set(optim.players) - set(params)
    if unknown:
        raise ConfigError(f"config.optim.players names {sorted(unknown)}; this task's players are {sorted(params)}")
    clips, rules, schedules = {}, {FROZEN: optax.set_to_zero()}, {}
    for player in params:
        options = _merge_player_options(optim, player)
        schedules[player] = schedule(options, steps)
        clips[player] = optax.clip_by_global_norm(options.clip) if options.clip else optax.identity()
        for factor in {1.0, *(factor for _, factor in optim.lr_scale)}:
            for decayed in (True, False):
                rate = _scale_schedule(schedules[player], factor)
                rules[_group_name(player, decayed, factor)] = _build_optimiser(options, rate, decayed, axes)

    def group(path, _):
        name = path_name(path)
        if matches(optim.freeze, name):
            return FROZEN
        factor = next((factor for pattern, factor in optim.lr_scale if re.search(pattern, kernel_path(name))), 1.0)
        return _group_name(name.split("/")[0], not matches(optim.no_decay, name), factor)

    def group_for_clipping(path, _):
        name = path_name(path)
        return FROZEN if matches(optim.freeze, name) else name.split("/")[0]

    tx = optax.chain(
        optax.partition(clips | {FROZEN: optax.set_to_zero()}, _label_params(params, group_for_clipping)),
        optax.partition(rules, _label_params(params, group)),
        _scale_by_layer(optim.layer_decay, params, axes) if optim.layer_decay != 1 else optax.identity(),
    )
    return Optimizer(tx, schedules)


def layer_scales(decay: float, params, axes: Mapping[str, tuple[str | None, ...]]) -> dict[str, jax.Array]:
    """Computes the factors of layer-wise learning rate decay (BEiT, arXiv 2106.08254, appendix): parameter path -> factor.

    Block i of a transformer of n blocks has the factor `decay ** (n - i)`, the embeddings before it `decay ** (n + 1)`, and
    everything else 1. The blocks of an encoder of m blocks precede those of the transformer that attends to it: its block i
    has `decay ** (n + m - i)`, its input `decay ** (n + m + 1)`, the norm of its output `decay ** n`.
    Factors of stacked blocks have an axis of layers and broadcast to the parameters. Adapters have those of their kernels.
    Raises ConfigError if there is no transformer.
    """
    shapes = {name: x.shape for name, x in by_path(params).items()}
    depths: dict[str, dict[str, int]] = {}  # path of a module -> its transformer and its encoder -> number of blocks
    kernels = {name: kernel_path(name) for name in shapes}
    for name in shapes:
        match = re.search(r"^(.*?)/(transformer|encoder)/(?:blocks|block_(\d+))/", name)
        if match and kernels[name] == name:
            index = shapes[name][axes[name].index("layers")] - 1 if match[3] is None else int(match[3])
            stacks = depths.setdefault(match[1], {})
            stacks[match[2]] = max(stacks.get(match[2], 0), index + 1)
    if not any("transformer" in stacks for stacks in depths.values()):
        raise ConfigError("config.optim.layer_decay decays the blocks of transformers, and this model has none: set it to 1")
    scales = dict.fromkeys(shapes, jnp.ones(()))
    for name, shape in shapes.items():
        for module, stacks in depths.items():
            if not kernels[name].startswith(f"{module}/"):
                continue
            first, _, rest = kernels[name].removeprefix(f"{module}/").partition("/")
            depth = stacks.get("transformer", 0)
            total = depth + stacks.get("encoder", 0)
            before = {"encoder_norm": depth, **dict.fromkeys(_INPUTS, depth + 1), **dict.fromkeys(_CONDITION, total + 1)}
            end = {"transformer": depth, "encoder": total}.get(first)
            if first in before:
                scales[name] = jnp.asarray(decay ** before[first])
            elif end and (match := re.match(r"block_(\d+)/", rest)):
                scales[name] = jnp.asarray(decay ** (end - int(match[1])))
            elif end and rest.startswith("blocks/") and shape:  # the scale of an adapter is not trained
                axis = axes[name].index("layers")
                by_layer = decay ** jnp.arange(end, end - shape[axis], -1)
                scales[name] = jnp.expand_dims(by_layer, [i for i in range(len(shape)) if i != axis])
    return scales


def check_rules(optim: ConfigDict, steps: int) -> None:
    """Raises the ConfigError of `make` for an unknown optimiser, schedule or argument. Needs no parameters."""
    for player in ("", *optim.players):
        options = _merge_player_options(optim, player)
        _build_optimiser(options, schedule(options, steps), True, {})


def schedule(optim: ConfigDict, steps: int) -> Callable:
    """Makes the learning rate schedule: a linear warm-up from 0 to `lr`, then the shape `optim.schedule`.

    The schedule counts completed updates, not skipped updates. cosine and linear end at `final_lr * lr` after `steps`
    completed updates. wsd (warm-up, stable, decay: arXiv 2404.06395, section 4.1) is constant, and in the last share
    `cooldown` of all updates linear to `final_lr * lr`. rsqrt decays as 1/sqrt(update), continuously from the end of the
    warm-up (arXiv 1706.03762, equation 3, with the peak instead of the width).
    """
    lr, warmup, end = optim.lr, optim.warmup_steps, optim.lr * optim.final_lr
    after = steps - warmup
    cooldown = min(after, max(1, round(optim.cooldown * steps)))
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(lr, after, alpha=optim.final_lr),
        "linear": lambda: optax.linear_schedule(lr, end, after),
        "rsqrt": lambda: lambda count: lr * (max(warmup, 1) / (jnp.maximum(count, 0) + max(warmup, 1))) ** 0.5,
        "constant": lambda: optax.constant_schedule(lr),
        "wsd": lambda: optax.linear_schedule(lr, end, cooldown, transition_begin=after - cooldown),
    }
    if optim.schedule not in shapes:
        raise ConfigError(f"config.optim.schedule = {optim.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
    return optax.join_schedules([optax.linear_schedule(0.0, lr, max(warmup, 1)), shapes[optim.schedule]()], [warmup])


def set_schedule_counts(opt_state, updates):
    """Sets the step counts of the schedules in an optimiser state to `updates`."""

    def is_schedule_state(x):
        # The state of a schedule has only a count; the state of an optimiser, such as Adam, also has moments.
        return getattr(x, "_fields", None) == ("count",)

    return jax.tree.map(
        lambda x: x._replace(count=jnp.asarray(updates, x.count.dtype)) if is_schedule_state(x) else x,
        opt_state,
        is_leaf=is_schedule_state,
    )


def by_path(tree) -> dict[str, jax.Array]:
    """Returns the leaves of a tree by path name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def replace_rows(tree, moved: Mapping[str, jax.Array], values: Mapping[str, jax.Array]):
    """Replaces rows of parameters, or of optimiser moments of the same parameters, by rows of `values`.

    Args:
      tree: tree whose leaves belong to a parameter if their path ends with the parameter's path.
      moved: parameter path -> bool [rows], the rows to replace.
      values: parameter path -> array that broadcasts to the parameter's shape.
    """

    def replace(path, leaf):
        name = path_name(path)
        for parameter, rows in moved.items():
            if (name == parameter or name.endswith(f"/{parameter}")) and leaf.shape[:1] == rows.shape:
                return jnp.where(jnp.expand_dims(rows, tuple(range(1, leaf.ndim))), values[parameter], leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(replace, tree)


def reset_moments(opt_state, moved: Mapping[str, jax.Array], params):
    """Resets the moments of the parameter rows `moved` to zero.

    The iterate `z` of a schedule-free optimiser is set to the new parameters instead.
    """
    opt_state = replace_rows(opt_state, moved, dict.fromkeys(moved, jnp.zeros(())))
    values = by_path(params)
    return jax.tree.map(
        lambda s: s._replace(z=replace_rows(s.z, moved, values)) if _is_schedule_free(s) else s,
        opt_state,
        is_leaf=_is_schedule_free,
    )


def has_average(opt_state) -> bool:
    """Returns whether the optimiser maintains an average of the weights for evaluation."""
    return bool(_schedule_free_states(opt_state))


def evaluation_params(opt_state, params):
    """Returns the weights for evaluation: `params`, or the average of a schedule-free optimiser.

    The average is equation 3 of arXiv 2405.15682.
    """
    for state in _schedule_free_states(opt_state):  # each state holds `z` of one parameter group
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


def _merge_player_options(optim: ConfigDict, player: str) -> ConfigDict:
    """Overlays the optimiser options with those of one player."""
    options = optim.copy_and_resolve_references()
    with options.unlocked():
        for key, value in optim.players.get(player, {}).items():
            options[key] = value
    return options


def _build_optimiser(
    optim: ConfigDict, learning_rate: Callable, decayed: bool, axes: Mapping
) -> optax.GradientTransformation:
    """Builds the optax optimiser `optim.name` of one parameter group."""
    make_rule = _find_optimiser(optim.name)
    allowed = inspect.signature(make_rule).parameters
    arguments = dict(optim.args)
    for reserved in {"learning_rate", "weight_decay", "weight_decay_rate", "mask", "weight_decay_mask"} & set(
        arguments
    ):
        raise ConfigError(f"config.optim.args.{reserved}: set it by config.optim.lr, weight_decay or no_decay")
    for key in set(arguments) - set(allowed):
        raise ConfigError(f"config.optim.args.{key}: optax's {optim.name} takes {', '.join(allowed)}")
    decay = optim.weight_decay if decayed else 0.0
    if "weight_decay_rate" in allowed:  # Adafactor does not multiply the decay by the learning rate
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


def _find_optimiser(name: str) -> Callable:
    """Returns an optimiser of optax or optax.contrib by name."""
    module, _, function = name.rpartition(".")
    rule = getattr({"": optax, "contrib": optax.contrib}.get(module), function, None)
    if not callable(rule) or "learning_rate" not in inspect.signature(rule).parameters:
        raise ConfigError(
            f"config.optim.name = {name!r} is not an optimiser of optax: name one as 'adamw', 'lion', 'adafactor', "
            "'contrib.muon', 'contrib.schedule_free_adamw'"
        )
    return rule


def _muon_dimension_numbers(path: str, axes: Mapping[str, tuple[str | None, ...]]):
    """Returns the input and output axes of a kernel for Muon; None for other parameters."""
    matrix = kernel_axes(axes[path]) if path.endswith("/kernel") else None
    return matrix and optax.contrib.MuonDimensionNumbers(reduction_axis=matrix[0], output_axis=matrix[1])


def _group_name(player: str, decayed: bool, factor: float) -> str:
    """Returns the name of a parameter group. Checkpoints contain these names."""
    return f"{player}, {'decayed' if decayed else 'not decayed'}, lr x {factor:g}"


def _scale_schedule(rate: Callable, factor: float) -> Callable:
    return rate if factor == 1.0 else lambda count: factor * rate(count)


def _scale_by_layer(decay: float, params, axes: Mapping) -> optax.GradientTransformation:
    scales = layer_scales(decay, params, axes)
    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda path, x: scales[path_name(path)] * x, updates)
    )


def _label_params(params, group: Callable):
    return jax.tree_util.tree_map_with_path(group, params)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Returns whether any of the regular expressions matches a part of a parameter path."""
    return any(re.search(pattern, name) for pattern in patterns)


def _check_patterns(optim: ConfigDict, axes: Mapping) -> None:
    """Raises ConfigError for a `freeze` or `lr_scale` pattern that matches no parameter."""
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
