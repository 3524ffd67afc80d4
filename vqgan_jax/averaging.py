"""The average of an EMA codebook: where the encoder is averaged, the points that its latents are compared with are, too."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def averages(config) -> bool:
    """Whether a resolved config has an EMA codebook beside an averaged generator."""
    players = config.ema.players
    return bool(config.ema.decay) and (not players or "generator" in players) and config.model.quantizer.type == "ema"


def follow(
    average: Float[Array, "k d"], points: Float[Array, "k d"], moved: Bool[Array, "k"], step: jax.Array, decay: float
) -> Float[Array, "k d"]:
    """The average after an update, by the rule of the parameters' (`train_jax.step`); codes that moved begin anew."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jnp.where(moved[:, None], points, average + (1 - decay) * (points - average))


def variables(params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's variables for use, of a run's parameters (averaged ones where there are any) and its `extra`."""
    found = {"params": params["generator"], **extra.get("generator", {})}
    if "averaged" in extra:
        found["codebook"] = {"quantizer": found["codebook"]["quantizer"] | {"points": extra["averaged"]}}
    return found
