"""Moving average (EMA of parameters) of an EMA codebook, to be used with the averaged encoder."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def get_decay(config) -> float:
    """Returns the EMA decay of the generator's parameters in a resolved config, or 0 without averaging.

    With a decay of 0 the averaged codebook equals the codebook.
    """
    players = config.ema.players
    return config.ema.decay if not players or "generator" in players else 0.0


def update_average(
    average: Float[Array, "k d"], points: Float[Array, "k d"], moved: Bool[Array, "k"], step: jax.Array, decay: float
) -> Float[Array, "k d"]:
    """Updates the averaged codebook by the rule for parameters (`train_jax.step`); revived codes restart their average.

    Args:
      moved: mask of the codes that were replaced in this update.
      step: number of updates before this one.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jnp.where(moved[:, None], points, decay * average + (1 - decay) * points)


def inference_variables(params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the generator's variables for inference.

    Args:
      params: parameters of the run, averaged if the run averages them.
      extra: `extra` of the run's state.
    """
    state = dict(extra.get("generator", {}))
    if "averaged" in extra:
        state["codebook"] = {"quantizer": state["codebook"]["quantizer"] | {"points": extra["averaged"]}}
    return {"params": params["generator"], **state}
