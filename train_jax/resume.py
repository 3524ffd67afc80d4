"""Resuming with changed options: which parts of a checkpoint are restored, reset or incompatible."""

import logging
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from train_jax import optim
from train_jax.errors import ConfigError
from train_jax.options import flatten
from train_jax.sharding import path_name

log = logging.getLogger(__name__)


def select_parts(
    saved: Mapping, expected: Mapping, saved_config: Mapping, config: Mapping, *, reset_optimizer: bool
) -> dict:
    """Selects the parts of `expected` to restore from a checkpoint, without parts that are reset.

    Args:
      saved: arrays (or shapes) of the checkpoint: step, params, extra, ema, counters, opt_state.
      expected: arrays (or shapes) of this run's state.
      saved_config: config with which the checkpoint was saved.
      config: config of this run.
      reset_optimizer: do not restore the optimiser state.

    Moving averages that only one of the configs has are logged. Raises ConfigError if other arrays differ in name, shape or
    dtype; the message lists the arrays and the changed options.
    """
    parts = dict(expected)
    for player in sorted({*saved["ema"], *expected["ema"]}):
        if player not in saved["ema"]:
            log.warning("the checkpoint has no average of %s: the average starts from the weights", player)
        elif player not in expected["ema"]:
            log.warning("config.ema no longer averages %s: the checkpoint's average is dropped", player)
    parts["ema"] = {player: average for player, average in expected["ema"].items() if player in saved["ema"]}
    if not parts["ema"]:
        del parts["ema"]  # Orbax would treat an empty dict as a different structure
    if reset_optimizer:
        log.warning("the optimiser state is reset")
        del parts["opt_state"]
    for name in ("params", "extra", "counters"):
        if details := _describe_mismatch(saved[name], parts[name]):
            changes = _describe_changes(saved_config, config)
            remedy = "Go back to the options it was saved with" if changes else "Go back to the version that saved it"
            raise ConfigError(
                f"the checkpoint's {name} do not match this run{changes}: {details}. {remedy}, or choose another --workdir"
            )
    if details := _describe_mismatch(saved["opt_state"], parts.get("opt_state", saved["opt_state"])):
        changes = _describe_changes(saved_config, config, "optim.")
        raise ConfigError(
            f"the checkpoint holds the state of another optimiser{changes}: {details}. Go back to the options it was saved "
            "with, or use --reset-optimizer to continue with its weights and a new optimiser state"
        )
    return parts


def complete_state(state, abstract_state, init: Callable):
    """Completes a restored state: adds missing averages and a missing optimiser state.

    Averages start at the weights, the optimiser state at `init(params)`; schedules continue from the step of the run.
    """
    missing = [player for player in abstract_state.ema or {} if player not in (state.ema or {})]
    if state.opt_state is None:
        init_opt_state = jax.jit(
            lambda params, updates: optim.set_schedule_counts(init(params), updates),
            out_shardings=jax.tree.map(lambda x: x.sharding, abstract_state.opt_state),
        )
        state = state.replace(opt_state=init_opt_state(state.params, state.step - state.counters["skipped"]))
    if missing:
        added = {player: jax.tree.map(jnp.copy, state.params[player]) for player in missing}
        state = state.replace(ema=(state.ema or {}) | added)
    return state


def compare_configs(old: Mapping, new: Mapping) -> dict[str, tuple]:
    """Compares two configs. Returns dotted name -> (old value, new value) of all options that differ.

    The value of a missing option is None.
    """
    old, new = flatten(old), flatten(new)
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}


def _describe_changes(old: Mapping, new: Mapping, prefix: str = "") -> str:
    """Describes the changed options whose name starts with `prefix`; empty if there are none."""
    changes = [f"config.{key}: {a!r} → {b!r}" for key, (a, b) in compare_configs(old, new).items() if key.startswith(prefix)]
    return f" ({', '.join(changes)})" if changes else ""


def _describe_mismatch(saved, expected) -> str:
    """Describes missing, unexpected and mismatched arrays of `saved` against `expected`; empty if all match."""
    saved, expected = _describe_arrays(saved), _describe_arrays(expected)
    mismatches = [
        f"{name} is {saved[name]} in the checkpoint and {expected[name]} in this run"
        for name in expected
        if saved.get(name, expected[name]) != expected[name]
    ]
    mismatches += [f"{name} is missing" for name in expected if name not in saved]
    mismatches += [f"{name} is unexpected" for name in saved if name not in expected]
    return "; ".join(mismatches[:3]) + (f"; and {len(mismatches) - 3} more" if len(mismatches) > 3 else "")


def _describe_arrays(tree) -> dict[str, str]:
    """Describes dtype and shape of each array of a tree, by path."""
    return {
        path_name(path): f"{jnp.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    }
