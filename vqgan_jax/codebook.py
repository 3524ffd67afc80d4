"""Codebook updates without a gradient: moving means, usage, revival of dead codes, initialisation by k-means.

All of it sees all latents of the update at once, however many micro-batches they came in. The state (`extra["usage"]`):

    last       int32 [K]     the update at which a code was last taken, -1 for never
    share      float32 [K]   moving mean of the share of latents that took a code
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.quantize import nearest_codes

WINDOW = 100  # updates over which usage and perplexity are measured
_ROUNDS = 10  # of k-means


def initial_usage(size: int) -> dict[str, jax.Array]:
    """The state before the first update."""
    return {"last": jnp.full((size,), -1, jnp.int32), "share": jnp.zeros((size,))}


def update_usage(state: dict, codes: Int[Array, "b h w"], step) -> tuple[dict, dict[str, jax.Array]]:
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
    return {"last": last, "share": share}, metrics


def update_moving_means(
    book: dict[str, jax.Array], codes: Int[Array, "b h w"], latents: Float[Array, "b h w d"], decay: float
) -> dict[str, jax.Array]:
    """An EMA codebook after an update: each code is the moving mean of its latents (arXiv 1711.00937, appendix A.1).

    `book`: `points` [K, D], and the moving `count` [K] and `total` [K, D] of the latents that took each code.
    """
    size, dim = book["points"].shape
    flat = codes.reshape(-1)
    used = jnp.zeros((size,)).at[flat].add(1.0)
    summed = jnp.zeros((size, dim)).at[flat].add(latents.reshape(-1, dim))
    count = decay * book["count"] + (1 - decay) * used
    total = decay * book["total"] + (1 - decay) * summed
    # Laplace smoothing keeps the mean of an unused code finite.
    smooth = (count + 1e-5) * (jnp.sum(count) / (jnp.sum(count) + size * 1e-5))
    return {"points": total / smooth[:, None], "count": count, "total": total}


def candidate_points(latents: Float[Array, "b h w d"], size: int, first, key, kmeans: bool) -> Float[Array, "k d"]:
    """Where `size` codes may move: latents drawn with `key`; at the first update, with `kmeans`, the centres of all.

    `first`: whether no update has been made yet, skipped ones left out.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    drawn = flat[jax.random.choice(key, flat.shape[0], (size,), replace=flat.shape[0] < size)]
    if not kmeans:
        return drawn
    # Gathered first: the rounds then run on every device alone, instead of meeting in each of them.
    return jax.lax.cond(
        first, lambda: kmeans_centers(nn.with_logical_constraint(flat, (None, None)), drawn), lambda: drawn
    )


def kmeans_centers(points: Float[Array, "n d"], begin: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Lloyd's k-means from `begin`; a centre without points stays."""

    def move(_, found):
        nearest = nearest_codes(points, found)
        counts = jnp.zeros((found.shape[0],)).at[nearest].add(1.0)
        sums = jnp.zeros(found.shape).at[nearest].add(points)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], found)

    return jax.lax.fori_loop(0, _ROUNDS, move, begin)


def move_codes(
    state: dict, book: dict[str, jax.Array], fresh: Float[Array, "k d"], step, first, revive: int, kmeans: bool
) -> tuple[dict, dict[str, jax.Array], Array]:
    """The state and the codebook after dead codes moved onto `fresh`, and which did: bool [K].

    A code is dead if none of the last `revive` updates took it. With `kmeans` all codes move after the first update.
    `book`: `points` [K, D], and if it is one of moving means its `count` and `total`, which start anew.
    """
    moved = jnp.zeros(fresh.shape[:1], bool)
    if revive:
        moved = (step - jnp.maximum(state["last"], 0) >= revive) & ~first
    if kmeans:
        moved = moved | first
    anew = {"points": fresh, "count": jnp.ones(fresh.shape[:1]), "total": fresh}
    book = {name: jnp.where(moved.reshape(-1, *(1,) * (x.ndim - 1)), anew[name], x) for name, x in book.items()}
    # As if just taken: it has the whole time again.
    return state | {"last": jnp.where(moved, step, state["last"]).astype(jnp.int32)}, book, moved


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a codebook changes by its use.

    Attributes:
      is_ema: its points are moving means of latents, with `decay`.
      revive_after: a code that no latent took for so many updates moves onto a latent; 0: never.
      kmeans: it begins with the k-means centres of the first update's latents.
    """

    num_codes: int
    is_ema: bool
    decay: float
    revive_after: int
    kmeans: bool

    @property
    def needs_latents(self) -> bool:
        return bool(self.revive_after or self.kmeans or self.is_ema)

    def update(
        self, usage: dict, book: dict[str, jax.Array], codes: Int[Array, "b h w"], latents: Float[Array, "b h w d"], rng,
        step, is_first,
    ) -> tuple[dict, dict[str, jax.Array], Array]:  # fmt: skip
        """Usage and codebook after an update, and which codes moved by more than their mean: bool [K].

        Args:
          usage: after `update_usage`.
          book: `points` [K, D], and of moving means `count` and `total`.
          step: updates made before this one; `is_first`: whether there were none.
        """
        if self.is_ema:
            book = update_moving_means(book, codes, latents, self.decay)
        candidates = candidate_points(latents, self.num_codes, is_first, rng, self.kmeans)
        return move_codes(usage, book, candidates, step, is_first, self.revive_after, self.kmeans)
