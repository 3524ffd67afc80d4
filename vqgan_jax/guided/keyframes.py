"""Weights of prompt parts that change in time."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train_jax.errors import ConfigError
from vqgan_jax.guided.prompts import Scene


class Keyframes(NamedTuple):
    """Keyframes of the parts of a painting, padded by their last ones.

    Attributes:
      steps, weights: keyframes [P, k], between which the weight of a part is linear.
      start, end: first step [P] of a part, and the step after its last.
    """

    steps: jax.Array
    weights: jax.Array
    start: jax.Array
    end: jax.Array


def make_keyframes(scenes: Sequence[Scene], steps: int) -> Keyframes | None:
    """Collects the keyframes of each scene (leading axis n); None if all weights are constant.

    Raises ConfigError for a part whose first step is not before the last of `steps` steps.
    """
    parts = [part for scene in scenes for part in scene]
    if not any(part.is_timed for part in parts):
        return None
    for part in parts:
        if part.start >= steps:
            raise ConfigError(
                f"from={part.start} of the part {part.content!r}: it must be below steps = {steps}, or it never begins"
            )
    count = max(len(part.keyframes) or 1 for part in parts)
    shape = (len(scenes), max(map(len, scenes)))
    keyframes = Keyframes(np.zeros((*shape, count)), np.zeros((*shape, count)), np.zeros(shape), np.full(shape, np.inf))
    for i, scene in enumerate(scenes):
        for j, part in enumerate(scene):
            frames = list(part.keyframes or [(0, part.weight)])
            frames += frames[-1:] * (count - len(frames))
            keyframes.steps[i, j], keyframes.weights[i, j] = zip(*frames, strict=True)
            keyframes.start[i, j], keyframes.end[i, j] = part.start, np.inf if part.end is None else part.end
    return Keyframes(*(values.astype(np.float32) for values in keyframes))


def weights_at(keyframes: Keyframes, step: Array) -> Float[Array, "P"]:
    """Computes the weights of the parts at a step."""
    weights = jax.vmap(jnp.interp, in_axes=(None, 0, 0))(step.astype(jnp.float32), keyframes.steps, keyframes.weights)
    return jnp.where((keyframes.start <= step) & (step < keyframes.end), weights, 0)
