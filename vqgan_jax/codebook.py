"""A codebook's health: which codes are in use, over a window of updates; reviving dead ones; a start by k-means.

The state (`extra["usage"]`) changes with every update:

    last       int32 [K]     the update at which a code was last taken, -1 for never
    share      float32 [K]   moving mean of the share of latents that took a code
    latents    float32 [K, D] latents of this batch, onto which dead codes may move (with revive or kmeans)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.quantize import nearest_codes

WINDOW = 100  # updates over which usage and perplexity are measured
_ROUNDS = 10  # of k-means


def start(size: int, dim: int | None) -> dict[str, jax.Array]:
    """The state before the first update; `dim` of the codes if latents are kept."""
    state = {"last": jnp.full((size,), -1, jnp.int32), "share": jnp.zeros((size,))}
    return state if dim is None else state | {"latents": jnp.zeros((size, dim))}


def follow(state: dict, codes: Int[Array, "b h w"], step) -> tuple[dict, dict[str, jax.Array]]:
    """The state after a batch's codes, and its metrics.

    usage: share of codes taken in the last WINDOW updates. perplexity: exp of the entropy of the moving mean distribution,
    at most the number of codes.
    """
    size = state["last"].shape[0]
    counts = jnp.zeros((size,)).at[codes.reshape(-1)].add(1.0)
    last = jnp.where(counts > 0, step, state["last"]).astype(jnp.int32)
    rate = jnp.maximum(1 / WINDOW, 1 / (step + 1))
    share = state["share"] + rate * (counts / codes.size - state["share"])
    recent = (last >= 0) & (step - last < WINDOW)
    p = share / jnp.maximum(jnp.sum(share), 1e-12)
    entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-12)))
    metrics = {"usage": jnp.mean(recent.astype(jnp.float32)), "perplexity": jnp.exp(entropy)}
    return state | {"last": last, "share": share}, metrics


def remember(state: dict, latents: Float[Array, "b h w d"], step, key, kmeans: bool) -> dict:
    """The state with some of the batch's latents, drawn with `key`; at the first update, with `kmeans`, their centres."""
    size, dim = state["latents"].shape
    flat = jax.lax.stop_gradient(latents).reshape(-1, dim)
    draw = jax.random.choice(key, flat.shape[0], (size,), replace=flat.shape[0] < size)
    chosen = flat[draw]
    if kmeans:
        # Gathered first: the rounds then run on every device alone, instead of meeting in each of them.
        chosen = jax.lax.cond(
            step == 0, lambda: centres(nn.with_logical_constraint(flat, (None, None)), chosen), lambda: chosen
        )
    return state | {"latents": chosen}


def centres(points: Float[Array, "n d"], begin: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Lloyd's k-means from `begin`; a centre without points stays."""

    def move(_, found):
        nearest = nearest_codes(points, found)
        counts = jnp.zeros((found.shape[0],)).at[nearest].add(1.0)
        sums = jnp.zeros(found.shape).at[nearest].add(points)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], found)

    return jax.lax.fori_loop(0, _ROUNDS, move, begin)


def revived(
    state: dict, points: Float[Array, "k d"], step, revive: int, kmeans: bool
) -> tuple[dict, Float[Array, "k d"], Array]:
    """The state and the codes after dead ones moved onto latents, and which did: bool [K].

    A code is dead if none of the last `revive` updates took it. With `kmeans` all codes move after the first update.
    """
    moved = jnp.zeros(points.shape[:1], bool)
    if revive:
        moved = (step - jnp.maximum(state["last"], 0) >= revive) & (step > 0)
    if kmeans:
        moved = moved | (step == 0)
    points = jnp.where(moved[:, None], state["latents"], points)
    # As if just taken: it has the whole time again.
    return state | {"last": jnp.where(moved, step, state["last"]).astype(jnp.int32)}, points, moved
