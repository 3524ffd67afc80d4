"""Gradient-free codebook updates: moving means, usage statistics, revival of dead codes, k-means initialisation.

These functions receive all latents of an update, from all micro-batches. The usage state (`extra["usage"]`):

    last       int32 [K]     index of the last update that used each code, or -1
    share      float32 [K]   moving mean of the fraction of latents assigned to each code
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.quantize import nearest_codes

WINDOW = 100  # number of updates over which usage and perplexity are measured
_ROUNDS = 10  # k-means iterations


def init_usage(size: int) -> dict[str, jax.Array]:
    """Returns the usage state before the first update."""
    return {"last": jnp.full((size,), -1, jnp.int32), "share": jnp.zeros((size,))}


def update_usage(state: dict, codes: Int[Array, "b h w"], step) -> tuple[dict, dict[str, jax.Array]]:
    """Updates the usage state with the codes of a batch; returns the state and the metrics `usage` and `perplexity`.

    `usage` is the fraction of codes used in the last WINDOW updates. `perplexity` is the exponential of the entropy of the
    moving mean distribution, at most the number of codes.
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
    """Updates an EMA codebook, whose codes are moving means of their latents (arXiv 1711.00937, appendix A.1).

    `book`: `points` [K, D], and the moving `count` [K] and `total` [K, D] of each code's latents.
    """
    size, dim = book["points"].shape
    flat = codes.reshape(-1)
    used = jnp.zeros((size,)).at[flat].add(1.0)
    summed = jnp.zeros((size, dim)).at[flat].add(latents.reshape(-1, dim))
    count = decay * book["count"] + (1 - decay) * used
    total = decay * book["total"] + (1 - decay) * summed
    # Laplace smoothing keeps the mean of an unused code finite.
    smoothed_count = (count + 1e-5) * (jnp.sum(count) / (jnp.sum(count) + size * 1e-5))
    return {"points": total / smoothed_count[:, None], "count": count, "total": total}


def sample_candidates(
    latents: Float[Array, "b h w d"], size: int, is_first, key, kmeans: bool, revive: bool = True
) -> Float[Array, "k d"]:
    """Returns `size` new points for dead codes: random latents, or k-means centres at the first update with `kmeans`.

    Args:
      is_first: whether this is the first update that is not skipped.
      revive: whether later updates use the points; if not, they get zeros, and nothing is sampled.
    """
    flat = latents.reshape(-1, latents.shape[-1])

    def sample():
        return flat[jax.random.choice(key, flat.shape[0], (size,), replace=flat.shape[0] < size)]

    def fit():
        # Replicated latents let each device run all iterations locally, without a collective per iteration.
        return fit_kmeans(nn.with_logical_constraint(flat, (None, None)), sample())

    later = sample if revive else lambda: jnp.zeros((size, flat.shape[1]), flat.dtype)
    return jax.lax.cond(is_first, fit, later) if kmeans else later()


def fit_kmeans(points: Float[Array, "n d"], initial_centers: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Computes k-means centres by Lloyd's algorithm from `initial_centers`. Centres of empty clusters do not move."""

    def lloyd_round(_, centers):
        nearest = nearest_codes(points, centers)
        counts = jnp.zeros((centers.shape[0],)).at[nearest].add(1.0)
        sums = jnp.zeros(centers.shape).at[nearest].add(points)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centers)

    return jax.lax.fori_loop(0, _ROUNDS, lloyd_round, initial_centers)


def move_codes(
    state: dict, book: dict[str, jax.Array], candidates: Float[Array, "k d"], step, is_first, revive_after: int, kmeans: bool
) -> tuple[dict, dict[str, jax.Array], Array]:
    """Replaces dead codes by `candidates`; returns the usage state, the codebook, and the mask of replaced codes [K].

    A code is dead if the last `revive_after` updates did not use it. With `kmeans` the first update replaces all codes.
    `book`: `points` [K, D], and for an EMA codebook `count` and `total`, which are reset for replaced codes.
    """
    moved = jnp.zeros(candidates.shape[:1], bool)
    if revive_after:
        moved = (step - jnp.maximum(state["last"], 0) >= revive_after) & ~is_first
    if kmeans:
        moved = moved | is_first
    reset = {"points": candidates, "count": jnp.ones(candidates.shape[:1]), "total": candidates}
    book = {name: jnp.where(moved.reshape(-1, *(1,) * (x.ndim - 1)), reset[name], x) for name, x in book.items()}
    # A replaced code counts as used in this update.
    return state | {"last": jnp.where(moved, step, state["last"]).astype(jnp.int32)}, book, moved


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule for gradient-free updates of a codebook.

    Attributes:
      num_codes: size of the codebook.
      is_ema: whether codes are moving means of latents, with `decay`.
      revive_after: number of updates after which an unused code is replaced by a latent; 0: never.
      kmeans: whether to initialise the codebook with k-means centres of the latents of the first update.
    """

    num_codes: int
    is_ema: bool
    decay: float
    revive_after: int
    kmeans: bool

    @property
    def needs_latents(self) -> bool:
        """Whether the rule reads latents of the batch."""
        return bool(self.revive_after or self.kmeans or self.is_ema)

    def update(
        self, usage: dict, book: dict[str, jax.Array], codes: Int[Array, "b h w"], latents: Float[Array, "b h w d"], rng,
        step, is_first,
    ) -> tuple[dict, dict[str, jax.Array], Array]:  # fmt: skip
        """Applies the update; returns the usage state, the codebook, and the mask of replaced codes [K].

        Args:
          usage: usage state after `update_usage`.
          book: `points` [K, D], and for an EMA codebook `count` and `total`.
          step: number of updates before this one, skipped ones included.
          is_first: whether this is the first update that is not skipped.
        """
        if self.is_ema:
            book = update_moving_means(book, codes, latents, self.decay)
        candidates = sample_candidates(latents, self.num_codes, is_first, rng, self.kmeans, bool(self.revive_after))
        return move_codes(usage, book, candidates, step, is_first, self.revive_after, self.kmeans)
