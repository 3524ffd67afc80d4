"""Resuming under changed options: which parts of a checkpoint are used, reset or refused."""

import logging
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from train_jax import optim
from train_jax.errors import ConfigError
from train_jax.sharding import path_name

log = logging.getLogger(__name__)


def usable(saved: Mapping, expected: Mapping, was: Mapping, now: Mapping, *, reset_optimizer: bool) -> dict:
    """Selects the parts of `expected` to read from a checkpoint: all but optimiser state and averages that start anew.

    Args:
      saved, expected: arrays (or their shapes) of the checkpoint and of this run's state: step, params, extra, ema,
        counters, opt_state.
      was, now: the config that the checkpoint was saved under, and this run's.
      reset_optimizer: the optimiser's state starts anew.

    Averages that were switched on or off are logged. Raises ConfigError where anything else has other names or shapes: it
    says which, and the options that differ.
    """
    parts = dict(expected)
    for player in sorted({*saved["ema"], *expected["ema"]}):
        if player not in saved["ema"]:
            log.warning("the checkpoint has no average of %s: it starts from the weights", player)
        elif player not in expected["ema"]:
            log.warning("config.ema no longer averages %s: the checkpoint's average is dropped", player)
    parts["ema"] = {player: average for player, average in expected["ema"].items() if player in saved["ema"]}
    if not parts["ema"]:
        del parts["ema"]  # the library takes an empty dict for another structure, not for a part
    if reset_optimizer:
        log.warning("the optimiser's state starts anew")
        del parts["opt_state"]
    for name in ("params", "extra", "counters"):
        if what := _difference(saved[name], parts[name]):
            options = _options(was, now)
            remedy = "Go back to the options it was saved under" if options else "Go back to the version that saved it"
            raise ConfigError(
                f"the checkpoint's {name} are not this run's{options}: {what}. {remedy}, or choose another --workdir"
            )
    if what := _difference(saved["opt_state"], parts.get("opt_state", saved["opt_state"])):
        raise ConfigError(
            f"the checkpoint holds the state of another optimiser{_options(was, now, 'optim.')}: {what}. Go back to the "
            "options it was saved under, or go on with --reset-optimizer: with its weights and fresh moments"
        )
    return parts


def completed(state, abstract_state, init: Callable):
    """Completes a restored state: missing averages start at the weights, missing moments at `init(params)`.

    Schedules continue from the run's step.
    """
    missing = [player for player in abstract_state.ema or {} if player not in (state.ema or {})]
    if state.opt_state is None:
        start = jax.jit(
            lambda params, done: optim.set_schedule_counts(init(params), done),
            out_shardings=jax.tree.map(lambda x: x.sharding, abstract_state.opt_state),
        )
        state = state.replace(opt_state=start(state.params, state.step - state.counters["skipped"]))
    if missing:
        fresh = {player: jax.tree.map(jnp.copy, state.params[player]) for player in missing}
        state = state.replace(ema=(state.ema or {}) | fresh)
    return state


def flat(config: Mapping, prefix: str = "") -> dict:
    """Flattens a config to options by dotted name."""
    options = {}
    for key, value in config.items():
        options |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return options


def changed(was: Mapping, now: Mapping) -> dict[str, tuple]:
    """Compares two configs: dotted names of differing options -> both values, None for a missing one."""
    was, now = flat(was), flat(now)
    return {key: (was.get(key), now.get(key)) for key in sorted({*was, *now}) if was.get(key) != now.get(key)}


def _options(was: Mapping, now: Mapping, prefix: str = "") -> str:
    pairs = [f"config.{key}: {a!r} → {b!r}" for key, (a, b) in changed(was, now).items() if key.startswith(prefix)]
    return f" ({', '.join(pairs)})" if pairs else ""


def _difference(saved, expected) -> str:
    """Describes arrays of `expected` that `saved` lacks or has in another shape or dtype, and surplus ones; "": none.
    """
    have, need = _arrays(saved), _arrays(expected)
    other = [
        f"{name} is {have[name]} there and {need[name]} here"
        for name in need
        if have.get(name, need[name]) != need[name]
    ]
    other += [f"{name} is missing" for name in need if name not in have]
    other += [f"{name} is left over" for name in have if name not in need]
    return "; ".join(other[:3]) + (f"; and {len(other) - 3} more" if len(other) > 3 else "")


def _arrays(tree) -> dict[str, str]:
    return {
        path_name(path): f"{jnp.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    }
