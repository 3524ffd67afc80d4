"""Moving average of an EMA codebook, for use with the moving average of its encoder."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def decay(config) -> float:
    """Returns the decay of the generator's moving average in a resolved config; 0 where there is none.

    With 0 the codebook's average is the codebook itself.
    """
    players = config.ema.players
    return config.ema.decay if not players or "generator" in players else 0.0


def update(
    average: Float[Array, "k d"], points: Float[Array, "k d"], moved: Bool[Array, "k"], step: jax.Array, decay: float
) -> Float[Array, "k d"]:
    """Returns the average after an update, by the rule for parameters (`train_jax.step`); codes that moved start again.

    step: number of updates before this one.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jnp.where(moved[:, None], points, decay * average + (1 - decay) * points)


def variables(params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the generator's variables for inference.

    params: a run's parameters, averaged ones where there are any. extra: the run's `extra`.
    """
    state = dict(extra.get("generator", {}))
    if "averaged" in extra:
        state["codebook"] = {"quantizer": state["codebook"]["quantizer"] | {"points": extra["averaged"]}}
    return {"params": params["generator"], **state}
