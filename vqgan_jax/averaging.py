"""The average of an EMA codebook: where the encoder is averaged, the points that its latents are compared with are, too."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def decay(config) -> float:
    """Of a resolved config: that of the generator's average; 0 without one, where the average is the codebook itself."""
    players = config.ema.players
    return config.ema.decay if not players or "generator" in players else 0.0


def follow(
    average: Float[Array, "k d"], points: Float[Array, "k d"], moved: Bool[Array, "k"], step: jax.Array, decay: float
) -> Float[Array, "k d"]:
    """The average after an update, by the rule of the parameters' (`train_jax.step`); codes that moved begin anew.

    step: updates made before this one.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jnp.where(moved[:, None], points, decay * average + (1 - decay) * points)


def variables(params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's variables for use, of a run's parameters (averaged ones where there are any) and its `extra`."""
    state = dict(extra.get("generator", {}))
    if "averaged" in extra:
        state["codebook"] = {"quantizer": state["codebook"]["quantizer"] | {"points": extra["averaged"]}}
    return {"params": params["generator"], **state}
