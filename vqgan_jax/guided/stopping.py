"""When a painting stops before its last step: when its loss has not improved for a number of steps.

What begins later is waited for: losses are compared from the step on from which prompt, prior, rates and temperature change
no more, since those before it tell nothing of what is still to come.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from train_jax.errors import ConfigError
from vqgan_jax.guided.options import Options
from vqgan_jax.guided.prompts import Part, Scene


class Stopping(NamedTuple):
    """What decides when a painting stops.

    Attributes:
      best: the lowest loss, up to the share that counts as better.
      since: the step of that loss.
    """

    best: jax.Array
    since: jax.Array


def begin_stopping(steps: Int[Array, "n"]) -> Stopping:
    """Returns what decides after `steps`, the completed steps, of which no loss is known."""
    return Stopping(jnp.full(steps.shape, jnp.inf), jnp.zeros_like(steps))


def stop_without_improvement(
    hparams: dict[str, jax.Array], settled: Int[Array, ""] | None, state: Any, new_state: Any, value: Float[Array, ""]
) -> Any:
    """Returns the state after a step: the same as before, with its step counter, if the painting has stopped.

    Args:
      settled: the first step that counts, `settled_step`; None: step 0.
      state, new_state: `trajectory.State` before and after the step.
      value: loss before the step.
    """
    best, since = state.stopping
    threshold = jnp.where(jnp.isinf(best), best, best - hparams["stop_share"] * jnp.abs(best))
    is_better = value < threshold
    best, new_since = jnp.where(is_better, value, best), jnp.where(is_better, state.step, since)
    has_stopped = (hparams["stop_after"] > 0) & (state.step - since > hparams["stop_after"])
    if settled is not None:
        counts = state.step >= settled
        best, new_since = jnp.where(counts, best, jnp.inf), jnp.where(counts, new_since, state.step)
        has_stopped = counts & has_stopped
    new_state = new_state._replace(stopping=Stopping(best, new_since))
    return jax.tree.map(lambda old, new: jnp.where(has_stopped, old, new), state, new_state)


def settled_step(scene: Scene, options: Options) -> int:
    """Returns the step from which prompt and schedules change no more, and losses count; 0 without `stop_after`.

    Raises ConfigError if no step is left at which the painting could stop.
    """
    if options.auto_stop is None or not options.auto_stop.stop_after:
        return 0
    steps, after = options.schedule.steps, options.auto_stop.stop_after
    settled, change = max(_last_changes(scene, options), key=lambda pair: pair[0])
    if settled >= steps:
        raise ConfigError(f"stop_after = {after} has no effect: {change} changes until the last step; leave one of them out")
    if settled + after >= steps - 1:
        counted = f", counted from step {settled} on, where {change} changes last" if change else ""
        raise ConfigError(
            f"stop_after = {after} has no effect in {steps} steps{counted}; set a smaller stop_after, or more steps"
        )
    return settled


def describe_stops(steps: Int32[np.ndarray, "n"], total: int) -> str:
    """Describes after which of `total` steps paintings have stopped; empty if none of them has."""
    if (steps == total).all():
        return ""
    return f"stopped after {', '.join(map(str, steps))} of {total} steps: the loss improved no more"


def _last_changes(scene: Scene, o: Options) -> list[tuple[int, str]]:
    """Returns the steps at which parts and schedules change last, with their names."""
    steps = o.schedule.steps
    changes = [(0, ""), *((_last_change(part, steps), f"the weight of {part.content!r}") for part in scene)]
    if o.rate_decay is not None and o.rate_decay.lr_decay != 1:
        changes.append((math.ceil(o.rate_decay.lr_decay_at * steps), "the learning rate (lr_decay)"))
    if o.rate_drops is not None:
        changes.append((max(o.rate_drops.lr_drops), "the learning rate (lr_drops)"))
    if o.probabilities is not None and o.probabilities.temperature_end:
        changes.append((steps, "the temperature (temperature_end)"))
    if o.prior is not None and o.prior.prior_weight:
        changes.append((steps, "the weight of the prior"))
    return changes


def _last_change(part: Part, steps: int) -> int:
    """Returns the step from which the weight of a part stays the same."""
    if part.end is not None and part.end < steps:
        return part.end
    return max([part.start, *(step for step, _ in part.keyframes)])
